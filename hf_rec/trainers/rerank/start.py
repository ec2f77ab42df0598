"""Where the training of a re-ranker starts: weights, tokenizer, items and prompt."""

import os
from dataclasses import dataclass
from typing import Any

from accelerate.utils import is_peft_model
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.rerank import RerankPrompt
from hf_rec.hub.load import checked_index, load_language_parts, load_reranker_parts, recommender_folder
from hf_rec.models.language.item_tokens import ItemTokens, SequenceKnowledge, give_item_tokens
from hf_rec.models.language.path_tokens import num_rows
from hf_rec.recommenders.reranker import check_judge
from hf_rec.trainers.causal_lm import load_for_training, refuse_router_loss
from hf_rec.trainers.rerank.config import RerankConfig


logger = logging.get_logger(__name__)

_PROMPT_SETTINGS = (
    *("form", "verbalizers", "num_candidates", "prompt_form", "max_length", "max_history", "max_item_tokens"),
    *("item_attributes", "template"),
)


@dataclass(frozen=True)
class RerankStart:
    """
    What a re-ranker begins with.

    Attributes:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Its weights can be trained.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]), catalog ([`Catalog`]), prompt ([`RerankPrompt`]).
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    catalog: Catalog
    prompt: RerankPrompt

    @classmethod
    def of(
        cls,
        model: str | os.PathLike | PreTrainedModel,
        args: RerankConfig,
        *,
        processing_class: PreTrainedTokenizerBase | None = None,
        catalog: Catalog | None = None,
        prompt: RerankPrompt | None = None,
        quantization_config: Any = None,
        knowledge: SequenceKnowledge | None = None,
    ) -> "RerankStart":
        """
        Put together what a trainer is given, what the folder of its model holds, and what has to be made.

        Args:
            model: A folder or Hub id (of a re-ranker, of a language model of hf_rec, of a model or of an adapter), or
                a model in memory.
            args ([`RerankConfig`]): Settings of a new prompt, and how to load the model.
            processing_class, catalog, prompt (*optional*): As given to the trainer.
            quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): Of a model given by name.
            knowledge ([`SequenceKnowledge`], *optional*): What new collaborative tokens are to show.
        """
        tokenizer, source = processing_class, model if isinstance(model, nn.Module) else os.fspath(model)
        revision, loaded = args.loading_options.get("revision"), None
        if isinstance(source, nn.Module):
            loaded = source
            _refuse_unused(args, quantization_config)
        elif (folder := recommender_folder(source, revision)) is not None:
            index, own = checked_index(folder), Catalog.load(folder)
            if catalog is not None and catalog.sha256 != own.sha256:
                raise ValueError(
                    f"`catalog` is not the one that {folder} was trained with, so its rows may mean other items. "
                    "Prepare the data from the same source, or start from a plain model."
                )
            catalog, source = own if catalog is None else catalog, str(folder)
            if index["kind"] == "reranker":
                folder_tokenizer, folder_prompt = load_reranker_parts(folder, index, own)
                prompt = prompt or folder_prompt
            elif index["kind"] == "language_model":
                folder_tokenizer = load_language_parts(folder, index, own)[0]
            else:
                raise ValueError(
                    f"`model` {source} is a recommender of the kind {index['kind']!r}, no language model."
                )
            tokenizer = tokenizer or folder_tokenizer
        if catalog is None:
            raise ValueError("`catalog` is required: it holds the items that the model judges.")
        if tokenizer is None:
            tokenizer = _tokenizer_of(source, revision)
        if loaded is None:
            loaded = load_for_training(str(source), args.loading_options, quantization_config)
        refuse_router_loss(loaded)
        if knowledge is not None:
            loaded = _merged(loaded)
            give_item_tokens(loaded, knowledge, max(num_rows(loaded), len(tokenizer)), args.seed)
        item_tokens = ItemTokens.of(loaded)
        if item_tokens is not None:
            item_tokens.wrap(loaded)
        prompt = _prompt(prompt, args, tokenizer, catalog, item_tokens)
        if changed := {name: count for name, count in prompt.report().items() if name in _CHANGES and count}:
            logger.warning(f"Items whose text the prompt had to change: {changed} (see `RerankPrompt.report`).")
        check_judge(loaded, prompt)
        return cls(loaded, tokenizer, catalog, prompt)


_CHANGES = ("shortened", "unnamed", "merged")


def _prompt(
    prompt: RerankPrompt | None,
    args: RerankConfig,
    tokenizer: PreTrainedTokenizerBase,
    catalog: Catalog,
    item_tokens: ItemTokens | None,
) -> RerankPrompt:
    """The prompt as given, or made; with collaborative tokens where the model has them."""
    tokens: dict[str, Any] = {}
    if item_tokens is not None:
        tokens = {"item_token_start": item_tokens.vocab_size, "user_token": item_tokens.knowledge.user_token}
    if prompt is None:
        settings = {name: getattr(args, name) for name in _PROMPT_SETTINGS}
        return RerankPrompt(tokenizer, catalog, **settings, **tokens)
    _check_prompt(prompt, args)
    if tokens and prompt.item_token_start is None:
        return prompt.with_item_tokens(tokenizer, catalog, **tokens)
    return prompt


def _merged(model: nn.Module) -> nn.Module:
    """A model without its adapter, whose changes become those of the weights: new tokens are given to plain models."""
    if not is_peft_model(model):
        return model
    if getattr(model.get_base_model(), "is_quantized", False):
        raise ValueError(
            "`collaborative` merges the adapter that training starts from, but its base model is quantized. Load it "
            "in full precision."
        )
    return model.merge_and_unload()


def _tokenizer_of(source: str | nn.Module, revision: str | None) -> PreTrainedTokenizerBase:
    name = source.config.name_or_path if isinstance(source, nn.Module) else source
    if not name:
        raise ValueError("`processing_class` is required for a model that was not loaded from a folder.")
    return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)


def _check_prompt(prompt: RerankPrompt, args: RerankConfig) -> None:
    """Refuse a ready prompt of another form, and name settings of `args` that it does not have."""
    if prompt.form != args.form:
        raise ValueError(
            f"`form` is {args.form!r}, but the prompt that is given, or comes with the model, is of the form "
            f"{prompt.form!r}. Set `form` to it, or start from a plain model."
        )
    if prompt.form == "letters" and args.permutations > prompt.num_candidates:
        raise ValueError(
            f"`permutations` is {args.permutations}, but the prompt that is given, or comes with the model, has "
            f"{prompt.num_candidates} candidates, and so many orders. Lower it, or start from a plain model."
        )
    fields = type(args).__dataclass_fields__
    ignored = [
        f"`{name}` {getattr(args, name)!r} (the prompt has {getattr(prompt, name)!r})"
        for name in _PROMPT_SETTINGS
        if getattr(args, name) != fields[name].default and getattr(args, name) != getattr(prompt, name)
    ]
    if ignored:
        logger.warning(f"Not used, as the prompt is given or comes with the model: {', '.join(ignored)}.")


def _refuse_unused(args: RerankConfig, quantization_config: Any) -> None:
    for name, value in (("model_init_kwargs", args.model_init_kwargs), ("quantization_config", quantization_config)):
        if value:
            raise ValueError(
                f"`{name}` goes with a `model` given by name, but it is a model in memory. Load it with "
                "these settings."
            )
