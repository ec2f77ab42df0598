"""Which tokens may follow: the catalog's item paths as a file (`ItemTrie`) and as flat tensors (`TrieCSR`)."""

from hf_rec.trie.csr import TrieCSR
from hf_rec.trie.item_trie import ItemTrie


__all__ = ["ItemTrie", "TrieCSR"]
