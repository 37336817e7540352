"""What a run trained, uploaded to a model hub."""
