"""Language models as training needs them: weights that can be trained, whole or as an adapter on its base."""

import copy
from typing import Any

from peft import PeftConfig, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils.peft_utils import find_adapter_config_file

from hf_rec.hub.base_model import load_adapter
from hf_rec.hub.files import RECOMMENDER_FILE, read_index
from hf_rec.hub.item_tokens import load_whole_model
from hf_rec.models.language.item_tokens import ItemTokens
from hf_rec.models.language.path_tokens import save_path_tokens_alone
from hf_rec.models.weight_files import local_folder


def load_for_training(
    name: str, model_init_kwargs: dict[str, Any] | None = None, quantization_config: Any = None
) -> nn.Module:
    """
    Load a model, or an adapter on its base model, to be trained further.

    Args:
        name (`str`): Folder, or id of a model on the Hub.
        model_init_kwargs (`dict`, *optional*): Keyword arguments of `from_pretrained`, those of the base model for an
            adapter. `dtype` is float32 without them, whatever the weights were saved in.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): Of the (base) model.

    Returns:
        [`~transformers.PreTrainedModel`], or [`~peft.PeftModel`] with the one adapter `"default"`.
    """
    options = {"dtype": "float32"} | (model_init_kwargs or {})
    if quantization_config is not None:
        if options.get("quantization_config") is not None:
            raise ValueError("`quantization_config` stands in `model_init_kwargs` too. Give it in one place.")
        options["quantization_config"] = quantization_config
    if find_adapter_config_file(name, revision=options.get("revision")) is not None:
        folder = local_folder(name, options.pop("revision", None))
        base = read_index(folder)["base"] if (folder / RECOMMENDER_FILE).is_file() else None
        return load_adapter(folder, base, trainable=True, **options)
    return load_whole_model(name, **options)


def with_revision(peft_config: PeftConfig, revision: str | None) -> PeftConfig:
    """A copy of an adapter's configuration that names the revision of the base model."""
    config = copy.copy(peft_config)
    config.revision = revision or config.revision
    return config


def add_adapter(model: PreTrainedModel, peft_config: PeftConfig, args: TrainingArguments) -> nn.Module:
    """
    Wrap a model in a fresh adapter.

    Args:
        model ([`~transformers.PreTrainedModel`]): The base model, quantized or not.
        peft_config ([`~peft.PeftConfig`]): Of the adapter.
        args ([`~transformers.TrainingArguments`]): Whether activations are checkpointed.
    """
    if hasattr(model, "peft_config"):
        raise ValueError(
            "`peft_config` asks for a new adapter, but `model` has one already. Leave `peft_config` out to train it "
            "further, or merge it first (`merge_and_unload`) and give the merged model."
        )
    if getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=bool(args.gradient_checkpointing))
    elif args.gradient_checkpointing:
        model.enable_input_require_grads()
    item_tokens = ItemTokens.of(model)
    if item_tokens is not None:
        item_tokens.unwrap(model)  # the adapter may put a layer of its own in the place of the embedding
    adapted = get_peft_model(model, peft_config)
    save_path_tokens_alone(adapted)
    if item_tokens is not None:
        item_tokens.wrap(adapted)
    return adapted


def refuse_router_loss(model: nn.Module) -> None:
    """Refuse a mixture of experts whose configuration asks for a load-balancing loss: the losses here have none."""
    if getattr(model.config.get_text_config(), "output_router_logits", False):
        raise ValueError(
            "`output_router_logits` is True in the configuration of the model: it asks for a load-balancing loss, "
            "which this trainer does not add. Set `model.config.output_router_logits = False`, or "
            "`model_init_kwargs={'output_router_logits': False}` where the model is given by name."
        )
