"""From a model to ranked items: constrained decoding, trie beam search, the `recommend` contract and its controls."""
