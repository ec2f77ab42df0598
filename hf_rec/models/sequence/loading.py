"""A sequence model that another model keeps frozen, from its folder."""

import os
from typing import Any

from transformers import AutoConfig, AutoModel, PreTrainedConfig

from hf_rec.models.loading import load_weights


def check_reads_history_alone(model: object, argument: str) -> None:
    """
    Refuse a model whose user vectors look training rows up, for a use that names neither users nor times: what it
    finds for the history of a training row is that very row, whose label it then tells.

    Args:
        model: A model over items.
        argument (`str`): What the message calls it.
    """
    if getattr(model, "reads_times", False):
        raise ValueError(
            f"`{argument}` is a {type(model).__name__}, which looks training rows up: in training it would find the "
            "row itself, and tell its label. Give a model that reads histories alone, such as SASRec."
        )


def load_sequence_model(folder: str | os.PathLike, argument: str = "sequence_model") -> Any:
    """
    Load a model over item numbers.

    Args:
        folder (`str` or `os.PathLike`): Folder or Hub id.
        argument (`str`, *optional*, defaults to `"sequence_model"`): What the message calls it.

    Returns:
        [`~hf_rec.models.sequence.base.SequencePreTrainedModel`], or another model over items.

    Raises:
        `ValueError`: Where it is a model over something else.
    """
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if not hasattr(config, "num_items"):
        raise ValueError(f"`{argument}` {folder} holds a {config.model_type!r}, not a sequence model of hf_rec.")
    return load_weights(AutoModel, folder)
