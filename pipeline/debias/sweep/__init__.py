"""Recipes x settings x seeds: which runs there are, and how they are trained and judged."""
