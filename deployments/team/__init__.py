"""A team's set-up: one Prefect server on PostgreSQL, and workers on several machines, under systemd."""
