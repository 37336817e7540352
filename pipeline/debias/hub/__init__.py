"""What this machine holds of models and data that others made: the hub's cache, packages; whose code may run."""
