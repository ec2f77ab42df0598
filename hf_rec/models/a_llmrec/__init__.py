"""A-LLMRec: one small space for what a sequence model knows of an item and for what its text says."""
