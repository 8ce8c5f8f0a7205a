"""Training of the model `demo`: a MusicGen of 15 MB, trained from scratch on procedural music (README.md)."""
