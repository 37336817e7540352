"""A run's folder: whose it is, what is in it, and writing so that a file is there whole or not at all."""
