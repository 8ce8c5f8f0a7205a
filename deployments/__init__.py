"""What runs the flows: the command line, the deployments, and the server and worker of one machine."""
