"""The studio: a web page to make music on, with the model in memory."""
