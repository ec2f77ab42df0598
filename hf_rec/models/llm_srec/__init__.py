"""The LLM-SRec student: a frozen causal LM with a projection of its own."""
