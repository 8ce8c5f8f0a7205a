"""Is the adapter better than the base model: losses on held-out clips, scores of generated music, a report."""
