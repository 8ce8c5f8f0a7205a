"""How the model `demo` is made: a MusicGen of 10 MB, trained from scratch on procedural music. See README.md beside this."""
