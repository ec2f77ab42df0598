"""Readers of data sets as published. Each returns `(interactions or ready-made splits, Catalog)`."""
