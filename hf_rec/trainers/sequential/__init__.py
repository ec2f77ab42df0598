"""Sequence models: cross-entropy, SCE and the sampled losses."""
