"""Prefect tasks: core functions with retries, persisted results, names and progress."""
