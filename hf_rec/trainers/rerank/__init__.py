"""Re-rankers: a language model judges candidates with one token."""
