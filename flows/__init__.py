"""Prefect flows: parameters and order."""
