"""The only folder where an item or a history becomes tokens."""
