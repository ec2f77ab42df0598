"""Beam search over the item trie: exact scores, certificates, no items of its own."""
