"""Settings of the LLM-SRec model."""

from transformers import AutoConfig, PreTrainedConfig


class LLMSRecModelConfig(PreTrainedConfig):
    """
    Settings of [`LLMSRecModel`].

    Parameters:
        language_model, sequence_model (`str`, *optional*):
            Folder or Hub id of the two frozen models.
        language_model_revision, sequence_model_revision (`str`, *optional*):
            Commit, for a Hub id.
        language_model_sha256, sequence_model_sha256 (`str`, *optional*):
            Hash of their weight files; other weights are refused.
        language_model_kwargs (`dict`, *optional*):
            Keyword arguments of `from_pretrained` of the language model, JSON values: `dtype`, `revision`,
            `attn_implementation`, `quantization_config`.
        adapter (`dict`, *optional*):
            PEFT configuration of an adapter on the language model, which is then trained too.
        hidden_size (`int`, *optional*, defaults to `1`):
            Hidden size H of the language model.
        sequence_size (`int`, *optional*, defaults to `64`):
            Width d of the sequence model's vectors.
        vector_size (`int`, *optional*, defaults to `128`):
            Width v of the retrieval vectors.
        head_size (`int`, *optional*, defaults to `2048`):
            Inner width of the user and item heads.
        num_items (`int`, *optional*, defaults to `1`):
            Items that the sequence model knows. Higher numbers in a slot are unknown to it: a zero vector stands
            there.
        catalog_sha256 (`str`, *optional*):
            Hash of the catalog that these items belong to.
    """

    model_type = "llm_srec"

    language_model: str | None = None
    language_model_revision: str | None = None
    language_model_sha256: str | None = None
    language_model_kwargs: dict | None = None
    sequence_model: str | None = None
    sequence_model_revision: str | None = None
    sequence_model_sha256: str | None = None
    adapter: dict | None = None
    hidden_size: int = 1
    sequence_size: int = 64
    vector_size: int = 128
    head_size: int = 2048
    num_items: int = 1
    catalog_sha256: str | None = None


AutoConfig.register(LLMSRecModelConfig.model_type, LLMSRecModelConfig)
