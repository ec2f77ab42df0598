"""A sequence model that another model keeps frozen, from its folder."""

import os
from typing import Any

from transformers import AutoConfig, AutoModel, PreTrainedConfig

from hf_rec.models.loading import load_weights


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
