"""
Turn a causal language model into a next-item recommender, and measure it honestly.

Public names load on first use, so `import hf_rec` brings in neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING


__version__ = "0.1.0"

_MODULES = {
    "BERT4RecConfig": "hf_rec.models.sequence.bert4rec",
    "BERT4RecModel": "hf_rec.models.sequence.bert4rec",
    "CaserConfig": "hf_rec.models.sequence.caser",
    "CaserModel": "hf_rec.models.sequence.caser",
    "Catalog": "hf_rec.data.catalog",
    "ESASRecConfig": "hf_rec.models.sequence.esasrec",
    "ESASRecModel": "hf_rec.models.sequence.esasrec",
    "FMLPRecConfig": "hf_rec.models.sequence.fmlprec",
    "FMLPRecModel": "hf_rec.models.sequence.fmlprec",
    "GRU4RecConfig": "hf_rec.models.sequence.gru4rec",
    "GRU4RecModel": "hf_rec.models.sequence.gru4rec",
    "ItemTrie": "hf_rec.trie.item_trie",
    "LLMSRecConfig": "hf_rec.trainers.llm_srec.config",
    "LLMSRecModel": "hf_rec.models.llm_srec.model",
    "LLMSRecModelConfig": "hf_rec.models.llm_srec.config",
    "LLMSRecTrainer": "hf_rec.trainers.llm_srec.trainer",
    "MSLConfig": "hf_rec.trainers.msl.config",
    "MSLTrainer": "hf_rec.trainers.msl.trainer",
    "Prompt": "hf_rec.data.prompts.next_item",
    "SASRecConfig": "hf_rec.models.sequence.sasrec",
    "SASRecModel": "hf_rec.models.sequence.sasrec",
    "SequentialConfig": "hf_rec.trainers.sequential.config",
    "SequentialTrainer": "hf_rec.trainers.sequential.trainer",
    "SoftmaxDPOConfig": "hf_rec.trainers.softmax_dpo.config",
    "SoftmaxDPOTrainer": "hf_rec.trainers.softmax_dpo.trainer",
    "TrieCSR": "hf_rec.trie.csr",
    "TrieLogitsProcessor": "hf_rec.search.logits_process",
    "load_recommender": "hf_rec.hub",
}

if TYPE_CHECKING:
    from hf_rec.data.catalog import Catalog
    from hf_rec.data.prompts.next_item import Prompt
    from hf_rec.hub import load_recommender
    from hf_rec.models.llm_srec.config import LLMSRecModelConfig
    from hf_rec.models.llm_srec.model import LLMSRecModel
    from hf_rec.models.sequence.bert4rec import BERT4RecConfig, BERT4RecModel
    from hf_rec.models.sequence.caser import CaserConfig, CaserModel
    from hf_rec.models.sequence.esasrec import ESASRecConfig, ESASRecModel
    from hf_rec.models.sequence.fmlprec import FMLPRecConfig, FMLPRecModel
    from hf_rec.models.sequence.gru4rec import GRU4RecConfig, GRU4RecModel
    from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel
    from hf_rec.search.logits_process import TrieLogitsProcessor
    from hf_rec.trainers.llm_srec.config import LLMSRecConfig
    from hf_rec.trainers.llm_srec.trainer import LLMSRecTrainer
    from hf_rec.trainers.msl.config import MSLConfig
    from hf_rec.trainers.msl.trainer import MSLTrainer
    from hf_rec.trainers.sequential.config import SequentialConfig
    from hf_rec.trainers.sequential.trainer import SequentialTrainer
    from hf_rec.trainers.softmax_dpo.config import SoftmaxDPOConfig
    from hf_rec.trainers.softmax_dpo.trainer import SoftmaxDPOTrainer
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
    "Prompt",
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
