"""
Models as `PretrainedConfig` + `PreTrainedModel`, and the compact head of causal LMs. No loss, no file, no trainer.

Importing this package registers the models with `AutoConfig` and `AutoModel`.
"""

from hf_rec.models.llm_srec.config import LLMSRecModelConfig
from hf_rec.models.llm_srec.model import LLMSRecModel
from hf_rec.models.sequence.base import SequenceModelOutput
from hf_rec.models.sequence.bert4rec import BERT4RecConfig, BERT4RecModel
from hf_rec.models.sequence.caser import CaserConfig, CaserModel
from hf_rec.models.sequence.esasrec import ESASRecConfig, ESASRecModel
from hf_rec.models.sequence.fmlprec import FMLPRecConfig, FMLPRecModel
from hf_rec.models.sequence.gru4rec import GRU4RecConfig, GRU4RecModel
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel


__all__ = [
    "BERT4RecConfig",
    "BERT4RecModel",
    "CaserConfig",
    "CaserModel",
    "ESASRecConfig",
    "ESASRecModel",
    "FMLPRecConfig",
    "FMLPRecModel",
    "GRU4RecConfig",
    "GRU4RecModel",
    "LLMSRecModel",
    "LLMSRecModelConfig",
    "SASRecConfig",
    "SASRecModel",
    "SequenceModelOutput",
]
