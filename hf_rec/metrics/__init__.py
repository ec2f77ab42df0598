"""Metrics of ranked lists in numpy: ranking, beyond accuracy, significance."""
