"""From raw files to split rows, prompts and batches; no model code."""
