"""Compare an adapter with its base model: losses on held-out clips, scores of generated music, a report."""
