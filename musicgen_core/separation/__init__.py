"""Remove vocals from clips with Demucs, an optional dependency, before they are encoded."""
