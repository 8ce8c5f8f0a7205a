"""How the model `demo` is made: a MusicGen of 15 MB, trained from scratch on procedural music (README.md)."""
