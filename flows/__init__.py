"""Prefect flows: their parameters, and the order of their tasks."""
