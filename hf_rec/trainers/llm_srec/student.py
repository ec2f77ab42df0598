"""The model that LLM-SRec trains, and its prompt, from what the trainer is given."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.retrieval import RetrievalPrompt
from hf_rec.data.splits import seen_items
from hf_rec.models.llm_srec.model import LLMSRecModel
from hf_rec.models.sequence.base import SequencePreTrainedModel
from hf_rec.models.sharded_weights import has_sharded_weights
from hf_rec.trainers.llm_srec.config import LLMSRecConfig
from hf_rec.trainers.llm_srec.rows import Rows, check_columns, is_encoded, weights_hash


def default_arguments(model: str | os.PathLike | PreTrainedModel) -> LLMSRecConfig:
    """Arguments with an output folder that is named after the language model."""
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else model.config.name_or_path
    return LLMSRecConfig(f"{Path(name).name or type(model).__name__}-LLM-SRec")


def make_student(
    model: str | os.PathLike | PreTrainedModel,
    sequence_model: str | os.PathLike | SequencePreTrainedModel | None,
    args: LLMSRecConfig,
    train_dataset: Rows | None,
    teacher_items: Iterable[int] | None,
    peft_config: Any,
) -> LLMSRecModel:
    """The model to train: the one given, or a new one over the two frozen ones."""
    if sequence_model is not None:
        if teacher_items is None and isinstance(train_dataset, Dataset) and not is_encoded(train_dataset):
            check_columns(train_dataset)
            teacher_items = seen_items(train_dataset)
        return _new_model(model, sequence_model, args, teacher_items, peft_config)
    if isinstance(model, str | os.PathLike):
        model = LLMSRecModel.from_pretrained(model, trust_remote_code=False)
    if not isinstance(model, LLMSRecModel):
        raise ValueError(f"`sequence_model` is required where `model` is a {type(model).__name__}: it is the teacher.")
    return model


def _new_model(
    language_model: str | os.PathLike | PreTrainedModel,
    sequence_model: str | os.PathLike | SequencePreTrainedModel,
    args: LLMSRecConfig,
    teacher_items: Iterable[int] | None,
    peft_config: Any,
) -> LLMSRecModel:
    """The model, its own weights drawn by `args.seed`; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        return LLMSRecModel.from_frozen(
            language_model,
            sequence_model,
            vector_size=args.vector_size,
            head_size=args.head_size,
            seen_items=teacher_items,
            language_model_kwargs=cast(dict[str, Any] | None, args.model_init_kwargs),  # JSON is read by now
            peft_config=peft_config,
        )


def trained_hash(model: LLMSRecModel) -> str | None:
    """Hash of the weights that were trained, on which the item vectors depend; `None` where a process has a part."""
    if has_sharded_weights(model):
        return None
    return weights_hash((name, param) for name, param in model.named_parameters() if param.requires_grad)


def new_prompt(args: LLMSRecConfig, tokenizer: PreTrainedTokenizerBase, catalog: Catalog) -> RetrievalPrompt:
    """The prompt that the arguments describe."""
    return RetrievalPrompt(
        tokenizer,
        catalog,
        max_length=args.max_length,
        max_history=args.max_history,
        max_item_tokens=args.max_item_tokens,
        dates=args.dates,
        item_attributes=args.item_attributes or (),
    )
