"""One run on one suite: the model's answers become a results file."""
