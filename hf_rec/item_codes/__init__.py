"""Semantic ids: item vectors become short lists of codes, one a level, which the catalog holds as a column."""
