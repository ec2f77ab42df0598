"""Softmax-DPO: the chosen item against many rejected ones, on TRL."""
