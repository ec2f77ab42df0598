"""
The frozen policy that preference training is measured against, and how a resumed run knows that it is the same one.

Where it lives: a second adapter `"ref"` (the model came with a trained adapter), the base model with adapters off (the
adapter is new), a second model, or nowhere but in precomputed log-probabilities.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel


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


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """
    A second model with the same weights. Not a deep copy: `forward` may be patched by what trained it before, and
    would still run the original.
    """
    copied = type(model)(model.config).to(device=model.device, dtype=model.dtype)
    copied.load_state_dict(model.state_dict())
    return copied.requires_grad_(False).eval()


def freeze_reference_adapter(model: nn.Module) -> None:
    """Keep the optimizer off the copy."""
    for _, weight in _adapter_weights(model):
        weight.requires_grad_(False)


def describe_reference(model: nn.Module, ref_model: nn.Module | None) -> dict[str, str]:
    """
    What the reference is: its kind and a hash.

    Args:
        model (`torch.nn.Module`): The policy before its first step.
        ref_model (`torch.nn.Module` or `None`): The second model.

    Returns:
        `dict[str, str]`: `kind` (`"model"`, `"adapter"`, `"base"` or `"start"`) and `sha256`.
    """
    if ref_model is not None:
        return {"kind": "model", "sha256": _hash(ref_model.named_parameters())}
    if not is_peft_model(model):
        return {"kind": "start", "sha256": _hash(model.named_parameters())}
    if REF_ADAPTER in model.peft_config:
        return {"kind": "adapter", "sha256": _hash(_adapter_weights(model))}
    base = ((name, weight) for name, weight in model.named_parameters() if f".{POLICY_ADAPTER}." not in f"{name}.")
    return {"kind": "base", "sha256": _hash(base)}


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


def _adapter_weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, weight) for name, weight in model.named_parameters() if f".{REF_ADAPTER}." in f"{name}."]


def _hash(weights: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, weight in weights:
        values = weight.detach().flatten()[:_HASHED_VALUES]
        values = values.double() if values.is_floating_point() else values.long()
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(values.to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()
