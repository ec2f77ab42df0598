"""LLM-SRec: the user vector of a frozen sequence model, distilled into a frozen language model."""
