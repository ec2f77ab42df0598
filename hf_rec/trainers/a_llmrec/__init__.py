"""A-LLMRec, stage 1: item vectors of a frozen sequence model and text vectors, brought into one space."""
