"""
Turn a causal language model into a next-item recommender, and measure it honestly.

Public names load on first use, so `import hf_rec` brings in neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING


__version__ = "0.1.0"

_MODULES = {
    "Catalog": "hf_rec.data.catalog",
    "ItemTrie": "hf_rec.trie.item_trie",
    "MSLConfig": "hf_rec.trainers.msl_config",
    "MSLTrainer": "hf_rec.trainers.msl_trainer",
    "SoftmaxDPOConfig": "hf_rec.trainers.softmax_dpo_config",
    "SoftmaxDPOTrainer": "hf_rec.trainers.softmax_dpo_trainer",
    "TrieCSR": "hf_rec.trie.csr",
    "TrieLogitsProcessor": "hf_rec.generation.logits_process",
    "load_recommender": "hf_rec.hub",
}

if TYPE_CHECKING:
    from hf_rec.data.catalog import Catalog
    from hf_rec.generation.logits_process import TrieLogitsProcessor
    from hf_rec.hub import load_recommender
    from hf_rec.trainers.msl_config import MSLConfig
    from hf_rec.trainers.msl_trainer import MSLTrainer
    from hf_rec.trainers.softmax_dpo_config import SoftmaxDPOConfig
    from hf_rec.trainers.softmax_dpo_trainer import SoftmaxDPOTrainer
    from hf_rec.trie.csr import TrieCSR
    from hf_rec.trie.item_trie import ItemTrie

__all__ = [
    "Catalog",
    "ItemTrie",
    "MSLConfig",
    "MSLTrainer",
    "SoftmaxDPOConfig",
    "SoftmaxDPOTrainer",
    "TrieCSR",
    "TrieLogitsProcessor",
    "load_recommender",
]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'hf_rec' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
