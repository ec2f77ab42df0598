"""
A language model that grows by the tokens of codes and items: rows of its embeddings and of its head, and no others.

Shapes: V tokens of the vocabulary · P path tokens · H hidden size.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_rec.models.sharded_weights import written_whole


def num_rows(model: nn.Module) -> int:
    """Tokens that a model has embeddings for; often more than its tokenizer knows."""
    weight = model.get_input_embeddings().weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])  # the first is of a weight that ZeRO-3 keeps in pieces


def resize_vocabulary(model: PreTrainedModel, num_tokens: int) -> None:
    """
    Make room for `num_tokens` tokens where a model has fewer. What the new rows hold means nothing yet; the biases of
    a head are 0 there. The global random state is left as it was.
    """
    before = num_rows(model)
    if num_tokens <= before:
        return
    device = model.get_input_embeddings().weight.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        with torch.no_grad(), written_whole([head.bias]):
            head.bias[before:] = 0


def grow_vocabulary(
    model: PreTrainedModel,
    num_tokens: int,
    new_ids: Sequence[int],
    words: Mapping[int, np.ndarray] | None = None,
    seed: int = 0,
) -> None:
    """
    Give path tokens their rows in the embeddings, and in the head where that is not the same matrix.

    A row is drawn around the mean of the vocabulary, with its spread: a path token looks like any other token. With
    `words` it is the mean of the rows of its words.

    Args:
        model ([`~transformers.PreTrainedModel`]): Changed in place; not an adapter.
        num_tokens (`int`): Tokens of the tokenizer.
        new_ids (`list[int]`): The path tokens, as [`~hf_rec.data.prompts.path_tokens.add_path_tokens`] returns them.
        words (`dict[int, np.ndarray]`, *optional*): Tokens of the words that tell about a path token; one that has
            none is drawn.
        seed (`int`, *optional*, defaults to `0`): Of the noise; the global random state is left as it was.
    """
    if isinstance(model, PeftModel) or hasattr(model, "peft_config"):
        raise ValueError(
            "`model` is an adapter, and the tokens of item paths are rows of its base. Give the trainer the base "
            "model and a new `peft_config`, or merge the adapter first (`merge_and_unload`)."
        )
    resize_vocabulary(model, num_tokens)
    known = torch.ones(num_tokens, dtype=torch.bool)
    known[list(new_ids)] = False
    generator = torch.Generator().manual_seed(seed)
    for weight in _vocabulary_weights(model):
        with written_whole([weight]):
            _fill(weight, known.to(weight.device), new_ids, words or {}, generator)


def train_path_tokens(peft_config: PeftConfig, model: PreTrainedModel, token_ids: Sequence[int]) -> PeftConfig:
    """
    A copy of an adapter's configuration under which the path tokens are trained and saved too, and no other row.

    Args:
        peft_config ([`~peft.PeftConfig`]): Of the adapter that is to be made. One that saves the whole embeddings
            (`modules_to_save`) stays as it is.
        model ([`~transformers.PreTrainedModel`]): Its base, with the rows of the tokens.
        token_ids (`list[int]`): The path tokens.
    """
    config = copy.copy(peft_config)
    names = [name for name, module in model.named_modules() if module is model.get_input_embeddings()]
    head = model.get_output_embeddings()
    if not model.config.get_text_config().tie_word_embeddings:
        names += [name for name, module in model.named_modules() if module is head]
    saved: list[str] = list(getattr(config, "modules_to_save", None) or [])
    if all(any(name == part or name.endswith(f".{part}") for part in saved) for name in names):
        return config
    if getattr(head, "bias", None) is not None:  # the trainable tokens of PEFT leave the bias of a head out
        config.modules_to_save = [*saved, *names]
        return config
    if not hasattr(config, "trainable_token_indices"):
        raise ValueError(
            f"`peft_config` is a {type(config).__name__}, which cannot train the tokens of item paths. Use LoRA, or "
            f"add {names} to its `modules_to_save`."
        )
    given = config.trainable_token_indices or {}
    given = given if isinstance(given, dict) else {names[0]: given}
    config.trainable_token_indices = dict(given)
    for name in names:
        key = next((key for key in given if name == key or name.endswith(f".{key}")), name)
        config.trainable_token_indices[key] = sorted({*given.get(key, ()), *token_ids})
    return config


def save_path_tokens_alone(model: nn.Module) -> None:
    """Let an adapter with trainable tokens be saved without the whole embeddings, which PEFT adds once they grew."""
    if isinstance(model, PeftModel) and getattr(model.active_peft_config, "trainable_token_indices", None):
        method: Any = partial(type(model).save_pretrained, model)
        model.save_pretrained = partial(method, save_embedding_layers=False)


def _vocabulary_weights(model: PreTrainedModel) -> list[nn.Parameter]:
    """The matrices with a row for each token, each once."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = [layer.weight for layer in layers if layer is not None]
    return [weight for i, weight in enumerate(weights) if all(weight is not other for other in weights[:i])]


@torch.no_grad()
def _fill(
    weight: Tensor, known: Tensor, new_ids: Sequence[int], words: Mapping[int, np.ndarray], generator: torch.Generator
) -> None:
    vocabulary = weight[: len(known)][known].float()
    noise = torch.randn(len(new_ids), weight.shape[1], generator=generator).to(weight.device)
    rows = vocabulary.mean(dim=0) + noise * vocabulary.std(dim=0)
    for place, token in enumerate(new_ids):
        if len(words.get(token, ())):
            found, counts = np.unique(words[token], return_counts=True)
            shares = torch.from_numpy(counts / counts.sum()).to(weight.device, torch.float32)
            rows[place] = shares @ weight[torch.from_numpy(found).to(weight.device)].float()
    weight[list(new_ids)] = rows.to(weight.dtype)
