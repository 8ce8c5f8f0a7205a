"""Adapters for other programs: peft on Hugging Face's MusicGen, and stock audiocraft."""
