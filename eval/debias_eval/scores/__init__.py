"""Numbers from predictions, and how sure they are: pure functions on arrays, which know no suite and no run."""
