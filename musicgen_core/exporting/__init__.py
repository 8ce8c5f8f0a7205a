"""Adapters for other programs: peft, stock audiocraft and transformers, as directories and on the Hugging Face Hub."""
