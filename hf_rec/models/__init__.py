"""
Models as `PretrainedConfig` + `PreTrainedModel`, and the compact head of causal LMs. No loss, no file, no trainer.

Importing this package registers all models with `AutoConfig` and their auto class: LLM-SRec, A-LLMRec, the T5 with
whole-word embeddings, and each module of `sequence`.
"""

from importlib import import_module
from pkgutil import iter_modules

import hf_rec.models.a_llmrec.model
import hf_rec.models.language.whole_words
import hf_rec.models.llm_srec.model  # noqa: F401
import hf_rec.models.sequence as sequence


for _module in iter_modules(sequence.__path__):
    import_module(f"{sequence.__name__}.{_module.name}")
