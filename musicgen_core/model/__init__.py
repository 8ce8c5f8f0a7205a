"""The language model, its text conditioning, its weights and its adapters."""
