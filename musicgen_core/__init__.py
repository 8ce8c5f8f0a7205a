"""MusicGen fine-tuning as plain Python: data, models, training and generation. Nothing here knows Prefect."""

import os

# Huge pages for PyTorch's large tensors on the CPU: page faults take a third of the codec's time without. Read by
# PyTorch when it allocates for the first time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
