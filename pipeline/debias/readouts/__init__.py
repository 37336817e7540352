"""How a model's answer is read: a classification head, or the answers of a causal model."""
