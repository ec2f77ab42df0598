"""How many positions a causal LM has, and a check against it that needs no weights."""

from transformers import PretrainedConfig


def num_positions(config: PretrainedConfig) -> int | None:
    """Positions of a language model, or of the text part of a larger one; `None` where its configuration is silent."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_positions(config: PretrainedConfig, max_length: int, longest: int | None = None) -> None:
    """
    Refuse prompts that a model has no positions for.

    Args:
        config ([`~transformers.PretrainedConfig`]): Of the model.
        max_length (`int`): Most tokens of a prompt with its answer.
        longest (`int`, *optional*): Tokens of the longest prompt there can be, where it is not `max_length`.
    """
    positions, longest = num_positions(config), max_length if longest is None else longest
    if positions is not None and longest > positions:
        though = "" if longest == max_length else f" and a prompt may be {longest} tokens long"
        raise ValueError(
            f"`max_length` is {max_length}{though}, but the model has {positions} positions. Set `max_length` to "
            f"{positions} or less; the oldest items of long histories are dropped."
        )
