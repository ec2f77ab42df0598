"""
Models as `PretrainedConfig` + `PreTrainedModel`, and the compact head of causal LMs. No loss, no file, no trainer.

Importing this package registers the models with `AutoConfig` and `AutoModel`.
"""

from hf_rec.models.bert4rec import BERT4RecConfig, BERT4RecModel
from hf_rec.models.caser import CaserConfig, CaserModel
from hf_rec.models.esasrec import ESASRecConfig, ESASRecModel
from hf_rec.models.fmlprec import FMLPRecConfig, FMLPRecModel
from hf_rec.models.gru4rec import GRU4RecConfig, GRU4RecModel
from hf_rec.models.llm_srec import LLMSRecModel
from hf_rec.models.llm_srec_config import LLMSRecModelConfig
from hf_rec.models.sasrec import SASRecConfig, SASRecModel
from hf_rec.models.sequence_model import SequenceModelOutput


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
