"""A training run in several processes, one for each GPU."""
