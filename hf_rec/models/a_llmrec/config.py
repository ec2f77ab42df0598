"""Settings of the A-LLMRec model."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class ALLMRecModelConfig(PreTrainedConfig):
    """
    Settings of [`ALLMRecModel`].

    Parameters:
        sequence_config (`dict`, *optional*):
            Configuration of the frozen sequence model inside, with its `model_type`.
        num_items (`int`, *optional*, defaults to `1`):
            Items of the catalog, N.
        catalog_sha256 (`str`, *optional*):
            Hash of the catalog whose rows the items are.
        max_length (`int`, *optional*, defaults to `50`):
            Newest events of a history that the sequence model reads.
        sequence_size (`int`, *optional*, defaults to `64`):
            Width d of the sequence model's vectors.
        text_size (`int`, *optional*, defaults to `128`):
            Width t of the text vectors.
        joint_size (`int`, *optional*, defaults to `128`):
            Width j of the space that both are brought to.
    """

    model_type = "a_llmrec"

    sequence_config: dict | None = None
    num_items: int = 1
    catalog_sha256: str | None = None
    max_length: int = 50
    sequence_size: int = 64
    text_size: int = 128
    joint_size: int = 128

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("num_items", "max_length", "sequence_size", "text_size", "joint_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")


AutoConfig.register(ALLMRecModelConfig.model_type, ALLMRecModelConfig)
