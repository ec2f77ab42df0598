"""MSL and LML: a causal LM learns to write the next item."""
