"""The contract `recommend` and `score`, and everything that keeps it."""
