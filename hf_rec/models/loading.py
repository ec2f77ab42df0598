"""Loading weights: no code of a model's folder runs, and no tensor is made up where the files lack it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel

from hf_rec.models.weight_files import check_weight_files


STORED_KWARGS = ("dtype", "revision", "attn_implementation", "quantization_config")
_KERNEL_KEYS = ("_attn_implementation", "_experts_implementation")


def check_stored_kwargs(kwargs: Mapping[str, Any], where: str) -> None:
    """
    Refuse keyword arguments of `from_pretrained` that a folder must not bring along: they could make it run code.

    Args:
        kwargs (`dict`): Keyword arguments that are kept in a file.
        where (`str`): The argument or file that holds them, for the message.

    Raises:
        `ValueError`: The message names the argument.
    """
    for name, value in kwargs.items():
        if name not in STORED_KWARGS:
            raise ValueError(
                f"{where} may hold {', '.join(map(repr, STORED_KWARGS))}, got {name!r}. Leave it out, or load the "
                "model yourself and hand it over."
            )
        if name == "attn_implementation" and "/" in str(value):
            raise ValueError(
                f"{where} has `attn_implementation` {value!r}: kernels of a Hub repository are code, which no folder "
                "may ask for. Use a built-in one, such as 'sdpa'."
            )


class _AutoClass(Protocol):
    def from_pretrained(self, *args: Any, **kwargs: Any) -> Any: ...


def load_weights(auto_class: _AutoClass, name: str | os.PathLike, **options: Any) -> PreTrainedModel:
    """
    `from_pretrained` of an auto class, with every tensor from safetensors files.

    Args:
        auto_class (`type`): Such as [`~transformers.AutoModelForCausalLM`].
        name (`str` or `os.PathLike`): Folder, or id on the Hub.
        options: Keyword arguments of `from_pretrained`.

    Returns:
        [`~transformers.PreTrainedModel`]: The model, as `from_pretrained` gives it.

    Raises:
        `ValueError`: Where the files lack a tensor, are damaged, or ask for code.
    """
    if Path(name).is_dir():
        check_weight_files(name)
    _check_kernels(_config(name, options), name)
    loaded = auto_class.from_pretrained(
        name, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
    )
    if not isinstance(loaded, tuple):  # a class with a loader of its own, which has checked its tensors
        return cast(PreTrainedModel, loaded)
    model, found = loaded
    wrong = sorted(found["missing_keys"]) + sorted(str(key[0]) for key in found["mismatched_keys"])
    if wrong:
        raise ValueError(
            f"The weights in {name} lack {len(wrong)} tensors of its config.json, or have them in another shape: "
            f"{', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}. They would be drawn at random. Copy the "
            "folder again, or save the model again."
        )
    return cast(PreTrainedModel, model)


def load_language_model(name: str | os.PathLike, **options: Any) -> PreTrainedModel:
    """[`load_weights`] of a causal LM, or of an encoder-decoder model where the configuration says that it is one."""
    has_encoder = getattr(_config(name, options), "is_encoder_decoder", False)
    return load_weights(AutoModelForSeq2SeqLM if has_encoder else AutoModelForCausalLM, name, **options)


def _config(name: str | os.PathLike, options: Mapping[str, Any]) -> PreTrainedConfig:
    origin = {key: options[key] for key in ("revision", "token", "cache_dir") if key in options}
    return AutoConfig.from_pretrained(name, **origin, trust_remote_code=False)


def _check_kernels(config: PreTrainedConfig, name: str | os.PathLike) -> None:
    parts = [config, *(getattr(config, key) for key in config.sub_configs if hasattr(config, key))]
    for part in parts:
        for key in _KERNEL_KEYS:
            if "/" in str(getattr(part, key, None) or ""):
                raise ValueError(
                    f"config.json of {name} asks for the kernel {getattr(part, key)!r} of a Hub repository, which is "
                    "code. Take it out of the file."
                )
