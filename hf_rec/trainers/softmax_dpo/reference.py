"""
The frozen policy that preference training is measured against, and how a resumed run knows that it is the same one.

Where it lives: a second adapter `"ref"` (the model came with a trained adapter), the base model with adapters off (the
adapter is new), a second model, or nowhere but in precomputed log-probabilities.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from hf_rec.models.language.item_tokens import ItemTokens
from hf_rec.trainers.causal_lm import load_for_training
from hf_rec.trainers.softmax_dpo.config import SoftmaxDPOConfig
from hf_rec.trainers.starting_point import StartingPoint


REF_ADAPTER = "ref"
POLICY_ADAPTER = "default"
REFERENCE_FILE = "reference.json"
_HASHED_VALUES = 256  # of each tensor; two trained models differ in all of them


def check_reference(model: PreTrainedModel, ref_model: PreTrainedModel | None) -> None:
    """Refuse a model whose adapters, or a reference whose vocabulary, do not go with a copy made at the start."""
    if is_peft_model(model):
        if model.active_peft_config.is_prompt_learning:
            raise ValueError(
                f"The adapter is of the kind {model.active_peft_config.peft_type.value}: prompt learning shifts all "
                "positions, which this trainer does not know. Use LoRA or another adapter of weights."
            )
        if REF_ADAPTER in model.peft_config:
            raise ValueError(
                f"`model` already has an adapter {REF_ADAPTER!r}, the name of the frozen copy that is made of the "
                f"policy: it would be another reference. Call `model.delete_adapter({REF_ADAPTER!r})` first."
            )
        if model.active_adapters != [POLICY_ADAPTER]:
            raise ValueError(
                f"`model` has the active adapters {model.active_adapters}, but the reference is a copy of one adapter "
                f"named {POLICY_ADAPTER!r}. Load the adapter under that name."
            )
    if ref_model is not None:
        sizes = [one.get_input_embeddings().weight.shape[0] for one in (model, ref_model)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"`ref_model` has {sizes[1]} tokens and `model` {sizes[0]}: their answers cannot be compared. Use the "
                "model that the policy was made from."
            )


def second_model(
    model: str | os.PathLike | PreTrainedModel, start: StartingPoint, args: SoftmaxDPOConfig
) -> PreTrainedModel | None:
    """
    The reference of a whole model.

    Args:
        model (`str`, `os.PathLike` or [`~transformers.PreTrainedModel`]): As given to the trainer.
        start ([`StartingPoint`]): With the policy, before its first step.
        args ([`SoftmaxDPOConfig`]): How it was loaded.

    Returns:
        [`~transformers.PreTrainedModel`]: A frozen copy. Under ZeRO-3, where each process holds a part of the weights,
        they are read again from their folder; for a model in memory by DPOTrainer, `None` here.
    """
    if not is_deepspeed_zero3_enabled():
        return frozen_copy(cast(PreTrainedModel, start.model))
    if isinstance(model, nn.Module):
        return None
    again = load_for_training(os.fspath(model), args.loading_options)
    start.grow(cast(PreTrainedModel, again), args)
    return cast(PreTrainedModel, again.requires_grad_(False).eval())


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """
    A second model with the same weights. Not a deep copy: `forward` may be patched by what trained it before, and
    would still run the original. No weights are drawn for it.
    """
    with torch.device("meta"):
        copied = type(model)(model.config)
        item_tokens = ItemTokens.of(model)
        if item_tokens is not None:
            item_tokens.attach(copied)
    clones: dict[int, Tensor] = {}  # of one tensor under several names there is one clone
    for name, module in model.named_modules():
        into = copied.get_submodule(name)
        for weights, twins in ((module._parameters, into._parameters), (module._buffers, into._buffers)):
            for key, weight in weights.items():
                if weight is not None and id(weight) not in clones:
                    clone = weight.detach().clone()
                    is_weight = isinstance(weight, nn.Parameter)
                    clones[id(weight)] = nn.Parameter(clone, requires_grad=False) if is_weight else clone
                twins[key] = None if weight is None else clones[id(weight)]
    if item_tokens is not None:
        item_tokens.wrap(copied)
    return copied.eval()


@torch.no_grad()
def copy_token_rows(model: nn.Module) -> None:
    """Give the frozen copy of an adapter its rows of trainable tokens too: DPOTrainer copies the layers alone."""
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if name.endswith(f".{REF_ADAPTER}"):
            weight.copy_(weights[f"{name.removesuffix(REF_ADAPTER)}{POLICY_ADAPTER}"])


def freeze_reference_adapter(model: nn.Module) -> None:
    """Keep the optimizer off the copy."""
    for name, weight in model.named_parameters():
        if _belongs_to(name, REF_ADAPTER):
            weight.requires_grad_(False)


def describe_reference(model: nn.Module, ref_model: nn.Module | None, has_new_adapter: bool = False) -> dict[str, str]:
    """
    What the reference is: its kind and a hash.

    Args:
        model (`torch.nn.Module`): The policy before its first step, and before anything wraps it.
        ref_model (`torch.nn.Module` or `None`): The second model, likewise.
        has_new_adapter (`bool`, *optional*, defaults to `False`): Whether the policy is a fresh adapter on `model`.

    Returns:
        `dict[str, str]`: `kind` (`"model"`, `"adapter"`, `"base"` or `"start"`) and `sha256`.
    """
    if ref_model is not None:
        return {"kind": "model", "sha256": _hash(ref_model.named_parameters())}
    if is_peft_model(model):
        adapter = [(name, weight) for name, weight in model.named_parameters() if _belongs_to(name, POLICY_ADAPTER)]
        return {"kind": "adapter", "sha256": _hash(adapter)}
    return {"kind": "base" if has_new_adapter else "start", "sha256": _hash(model.named_parameters())}


def check_resumed_reference(folder: str, found: dict[str, str]) -> None:
    """Compare the reference with the one that a checkpoint was trained against."""
    path = Path(folder, REFERENCE_FILE)
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no checkpoint of SoftmaxDPOTrainer: it holds no {REFERENCE_FILE}.")
    expected = json.loads(path.read_text(encoding="utf-8"))
    if found != expected:
        raise ValueError(
            f"The reference does not match: {folder} was trained against {expected['kind']} "
            f"{expected['sha256'][:12]}, this run has {found['kind']} {found['sha256'][:12]}. Give the `model` that "
            "the run began with."
        )


def _belongs_to(name: str, adapter: str) -> bool:
    """Whether a weight of a PEFT model is one of an adapter's."""
    return f".{adapter}." in f"{name}."


def _hash(weights: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, weight in weights:
        weight = _whole(weight, name)
        values = weight.detach().flatten()[:_HASHED_VALUES]
        values = values.double() if values.is_floating_point() else values.long()
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(values.to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()


def _whole(weight: Tensor, name: str) -> Tensor:
    """All values of a weight that may be shared out among processes."""
    if hasattr(weight, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            weight = weight.detach().clone()
    if hasattr(weight, "full_tensor"):
        weight = weight.full_tensor()
    if weight.numel() == 0 or weight.is_meta:
        raise ValueError(
            f"The weight {name} of the reference holds no values here, so that a resumed run could not tell "
            "the reference again. Give a `model` whose weights are loaded."
        )
    return weight
