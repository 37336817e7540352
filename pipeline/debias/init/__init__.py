"""A first run's YAML file, written from the first rows of somebody's data."""
