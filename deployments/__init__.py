"""The command line, the deployments, and the Prefect server and workers of one machine."""
