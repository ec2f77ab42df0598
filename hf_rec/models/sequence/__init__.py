"""Sequence models: item ids in, a vector for each position out."""
