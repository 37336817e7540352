"""Who says what is easy: a bias model a file; and the weight that is made of what it says."""
