"""From prompts to codes to audio files."""
