"""Set-up for a team: one Prefect server on PostgreSQL, and workers on several machines, under systemd."""
