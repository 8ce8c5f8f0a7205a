"""What a training run keeps on disk: its directory, checkpoints, the lock, the mirror."""
