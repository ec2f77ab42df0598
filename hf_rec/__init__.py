"""
Turn a causal language model into a next-item recommender, and measure it honestly.

Public names load on first use, so `import hf_rec` brings in neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING


__version__ = "0.1.0"

_MODULES = {
    "BERT4RecConfig": "hf_rec.models.bert4rec",
    "BERT4RecModel": "hf_rec.models.bert4rec",
    "CaserConfig": "hf_rec.models.caser",
    "CaserModel": "hf_rec.models.caser",
    "Catalog": "hf_rec.data.catalog",
    "ESASRecConfig": "hf_rec.models.esasrec",
    "ESASRecModel": "hf_rec.models.esasrec",
    "FMLPRecConfig": "hf_rec.models.fmlprec",
    "FMLPRecModel": "hf_rec.models.fmlprec",
    "GRU4RecConfig": "hf_rec.models.gru4rec",
    "GRU4RecModel": "hf_rec.models.gru4rec",
    "ItemTrie": "hf_rec.trie.item_trie",
    "LLMSRecConfig": "hf_rec.trainers.llm_srec_config",
    "LLMSRecModel": "hf_rec.models.llm_srec",
    "LLMSRecModelConfig": "hf_rec.models.llm_srec_config",
    "LLMSRecTrainer": "hf_rec.trainers.llm_srec_trainer",
    "MSLConfig": "hf_rec.trainers.msl_config",
    "MSLTrainer": "hf_rec.trainers.msl_trainer",
    "SASRecConfig": "hf_rec.models.sasrec",
    "SASRecModel": "hf_rec.models.sasrec",
    "SequentialConfig": "hf_rec.trainers.sequential_config",
    "SequentialTrainer": "hf_rec.trainers.sequential_trainer",
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
    from hf_rec.models.bert4rec import BERT4RecConfig, BERT4RecModel
    from hf_rec.models.caser import CaserConfig, CaserModel
    from hf_rec.models.esasrec import ESASRecConfig, ESASRecModel
    from hf_rec.models.fmlprec import FMLPRecConfig, FMLPRecModel
    from hf_rec.models.gru4rec import GRU4RecConfig, GRU4RecModel
    from hf_rec.models.llm_srec import LLMSRecModel
    from hf_rec.models.llm_srec_config import LLMSRecModelConfig
    from hf_rec.models.sasrec import SASRecConfig, SASRecModel
    from hf_rec.trainers.llm_srec_config import LLMSRecConfig
    from hf_rec.trainers.llm_srec_trainer import LLMSRecTrainer
    from hf_rec.trainers.msl_config import MSLConfig
    from hf_rec.trainers.msl_trainer import MSLTrainer
    from hf_rec.trainers.sequential_config import SequentialConfig
    from hf_rec.trainers.sequential_trainer import SequentialTrainer
    from hf_rec.trainers.softmax_dpo_config import SoftmaxDPOConfig
    from hf_rec.trainers.softmax_dpo_trainer import SoftmaxDPOTrainer
    from hf_rec.trie.csr import TrieCSR
    from hf_rec.trie.item_trie import ItemTrie

__all__ = [
    "BERT4RecConfig",
    "BERT4RecModel",
    "CaserConfig",
    "CaserModel",
    "Catalog",
    "ESASRecConfig",
    "ESASRecModel",
    "FMLPRecConfig",
    "FMLPRecModel",
    "GRU4RecConfig",
    "GRU4RecModel",
    "ItemTrie",
    "LLMSRecConfig",
    "LLMSRecModel",
    "LLMSRecModelConfig",
    "LLMSRecTrainer",
    "MSLConfig",
    "MSLTrainer",
    "SASRecConfig",
    "SASRecModel",
    "SequentialConfig",
    "SequentialTrainer",
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
