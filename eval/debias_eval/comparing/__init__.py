"""Two methods on the same examples: where they differ, and what keeps that from being a claim."""
