"""Which shortcuts training data offers, told from the data alone: no model is trained, and no group label needed."""
