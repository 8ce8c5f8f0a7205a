"""MusicGen fine-tuning in plain Python: data, model, training and generation, without Prefect."""
