"""
Turn a causal language model into a next-item recommender, and measure it honestly.

Public names load on first use, so `import hf_rec` brings in neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


__version__ = "0.1.0"

_MODULES = {
    "ALLMRecConfig": "hf_rec.trainers.a_llmrec.config",
    "ALLMRecModel": "hf_rec.models.a_llmrec.model",
    "ALLMRecModelConfig": "hf_rec.models.a_llmrec.config",
    "ALLMRecTrainer": "hf_rec.trainers.a_llmrec.trainer",
    "BERT4RecConfig": "hf_rec.models.sequence.bert4rec",
    "BERT4RecModel": "hf_rec.models.sequence.bert4rec",
    "CaserConfig": "hf_rec.models.sequence.caser",
    "CaserModel": "hf_rec.models.sequence.caser",
    "Catalog": "hf_rec.data.catalog",
    "ESASRecConfig": "hf_rec.models.sequence.esasrec",
    "ESASRecModel": "hf_rec.models.sequence.esasrec",
    "FMLPRecConfig": "hf_rec.models.sequence.fmlprec",
    "FMLPRecModel": "hf_rec.models.sequence.fmlprec",
    "FusedRecommender": "hf_rec.recommenders.fused",
    "GroundedRecommender": "hf_rec.recommenders.grounded",
    "GRU4RecConfig": "hf_rec.models.sequence.gru4rec",
    "GRU4RecModel": "hf_rec.models.sequence.gru4rec",
    "ItemTrie": "hf_rec.trie.item_trie",
    "LLMCFConfig": "hf_rec.trainers.sequential.llm_cf_config",
    "LLMCFModel": "hf_rec.models.sequence.llm_cf",
    "LLMCFModelConfig": "hf_rec.models.sequence.llm_cf",
    "LLMCFTrainer": "hf_rec.trainers.sequential.llm_cf",
    "LLMSRecConfig": "hf_rec.trainers.llm_srec.config",
    "LLMSRecModel": "hf_rec.models.llm_srec.model",
    "LLMSRecModelConfig": "hf_rec.models.llm_srec.config",
    "LLMSRecTrainer": "hf_rec.trainers.llm_srec.trainer",
    "LRURecConfig": "hf_rec.models.sequence.lrurec",
    "LRURecModel": "hf_rec.models.sequence.lrurec",
    "MFConfig": "hf_rec.models.sequence.mf",
    "MFModel": "hf_rec.models.sequence.mf",
    "MSLConfig": "hf_rec.trainers.msl.config",
    "MSLTrainer": "hf_rec.trainers.msl.trainer",
    "Prompt": "hf_rec.data.prompts.next_item",
    "RerankConfig": "hf_rec.trainers.rerank.config",
    "RerankTrainer": "hf_rec.trainers.rerank.trainer",
    "RerankedRecommender": "hf_rec.recommenders.reranked",
    "SASRecConfig": "hf_rec.models.sequence.sasrec",
    "SASRecModel": "hf_rec.models.sequence.sasrec",
    "SequentialConfig": "hf_rec.trainers.sequential.config",
    "SequentialTrainer": "hf_rec.trainers.sequential.trainer",
    "SoftmaxDPOConfig": "hf_rec.trainers.softmax_dpo.config",
    "SoftmaxDPOTrainer": "hf_rec.trainers.softmax_dpo.trainer",
    "TrieCSR": "hf_rec.trie.csr",
    "TrieLogitsProcessor": "hf_rec.search.logits_process",
    "load_recommender": "hf_rec.hub",
    "push_recommender": "hf_rec.hub",
}

if TYPE_CHECKING:  # the same names, for editors and type checkers
    from hf_rec.data.catalog import Catalog as Catalog
    from hf_rec.data.prompts.next_item import Prompt as Prompt
    from hf_rec.hub import load_recommender as load_recommender
    from hf_rec.hub import push_recommender as push_recommender
    from hf_rec.models.a_llmrec.config import ALLMRecModelConfig as ALLMRecModelConfig
    from hf_rec.models.a_llmrec.model import ALLMRecModel as ALLMRecModel
    from hf_rec.models.llm_srec.config import LLMSRecModelConfig as LLMSRecModelConfig
    from hf_rec.models.llm_srec.model import LLMSRecModel as LLMSRecModel
    from hf_rec.models.sequence.bert4rec import BERT4RecConfig as BERT4RecConfig
    from hf_rec.models.sequence.bert4rec import BERT4RecModel as BERT4RecModel
    from hf_rec.models.sequence.caser import CaserConfig as CaserConfig
    from hf_rec.models.sequence.caser import CaserModel as CaserModel
    from hf_rec.models.sequence.esasrec import ESASRecConfig as ESASRecConfig
    from hf_rec.models.sequence.esasrec import ESASRecModel as ESASRecModel
    from hf_rec.models.sequence.fmlprec import FMLPRecConfig as FMLPRecConfig
    from hf_rec.models.sequence.fmlprec import FMLPRecModel as FMLPRecModel
    from hf_rec.models.sequence.gru4rec import GRU4RecConfig as GRU4RecConfig
    from hf_rec.models.sequence.gru4rec import GRU4RecModel as GRU4RecModel
    from hf_rec.models.sequence.llm_cf import LLMCFModel as LLMCFModel
    from hf_rec.models.sequence.llm_cf import LLMCFModelConfig as LLMCFModelConfig
    from hf_rec.models.sequence.lrurec import LRURecConfig as LRURecConfig
    from hf_rec.models.sequence.lrurec import LRURecModel as LRURecModel
    from hf_rec.models.sequence.mf import MFConfig as MFConfig
    from hf_rec.models.sequence.mf import MFModel as MFModel
    from hf_rec.models.sequence.sasrec import SASRecConfig as SASRecConfig
    from hf_rec.models.sequence.sasrec import SASRecModel as SASRecModel
    from hf_rec.recommenders.fused import FusedRecommender as FusedRecommender
    from hf_rec.recommenders.grounded import GroundedRecommender as GroundedRecommender
    from hf_rec.recommenders.reranked import RerankedRecommender as RerankedRecommender
    from hf_rec.search.logits_process import TrieLogitsProcessor as TrieLogitsProcessor
    from hf_rec.trainers.a_llmrec.config import ALLMRecConfig as ALLMRecConfig
    from hf_rec.trainers.a_llmrec.trainer import ALLMRecTrainer as ALLMRecTrainer
    from hf_rec.trainers.llm_srec.config import LLMSRecConfig as LLMSRecConfig
    from hf_rec.trainers.llm_srec.trainer import LLMSRecTrainer as LLMSRecTrainer
    from hf_rec.trainers.msl.config import MSLConfig as MSLConfig
    from hf_rec.trainers.msl.trainer import MSLTrainer as MSLTrainer
    from hf_rec.trainers.rerank.config import RerankConfig as RerankConfig
    from hf_rec.trainers.rerank.trainer import RerankTrainer as RerankTrainer
    from hf_rec.trainers.sequential.config import SequentialConfig as SequentialConfig
    from hf_rec.trainers.sequential.llm_cf import LLMCFTrainer as LLMCFTrainer
    from hf_rec.trainers.sequential.llm_cf_config import LLMCFConfig as LLMCFConfig
    from hf_rec.trainers.sequential.trainer import SequentialTrainer as SequentialTrainer
    from hf_rec.trainers.softmax_dpo.config import SoftmaxDPOConfig as SoftmaxDPOConfig
    from hf_rec.trainers.softmax_dpo.trainer import SoftmaxDPOTrainer as SoftmaxDPOTrainer
    from hf_rec.trie.csr import TrieCSR as TrieCSR
    from hf_rec.trie.item_trie import ItemTrie as ItemTrie

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'hf_rec' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
