"""
Where the training of a language model starts: weights, tokenizer, items, prompt, trie and temperature.

A folder that a trainer of hf_rec wrote brings all of these along; a plain model brings weights and tokenizer.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.data.prompts.path_forms import TITLE
from hf_rec.data.prompts.path_tokens import add_path_tokens, path_token_ids, words_under_tokens
from hf_rec.hub.load import checked_index, load_language_parts, recommender_folder
from hf_rec.models.language.item_tokens import (
    ItemTokens,
    SequenceKnowledge,
    check_item_tokens,
    give_item_tokens,
    train_projector,
)
from hf_rec.models.language.path_tokens import grow_vocabulary, num_rows, train_path_tokens
from hf_rec.models.language.positions import check_positions
from hf_rec.trainers.causal_lm import load_for_training, refuse_router_loss, with_revision
from hf_rec.trainers.language_config import LanguageConfig
from hf_rec.trie.item_trie import ItemTrie


logger = logging.get_logger(__name__)

_CHANGES = ("shortened", "unnamed", "merged")  # counts of `Prompt.report` that a user should see
_PROMPT_SETTINGS = {"prompt_form": "form"} | {
    name: name
    for name in (
        "max_length",
        "max_history",
        "item_path",
        "history_path",
        "item_attributes",
        "instruction",
        "template",
    )
}


@dataclass(frozen=True)
class RecommenderFolder:
    """
    A language model folder that a trainer of hf_rec wrote, its files checked against each other.

    Attributes:
        folder (`Path`): Where it is.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]), catalog ([`Catalog`]), prompt ([`Prompt`]), trie
            ([`ItemTrie`]): What the weights were trained with.
        tau (`float`): Temperature that belongs to them.
    """

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    catalog: Catalog
    prompt: Prompt
    trie: ItemTrie
    tau: float

    @classmethod
    def find(cls, name: str, revision: str | None = None) -> "RecommenderFolder | None":
        """
        Read a folder or a Hub repository; `None` where it holds no `recommender.json`.

        Args:
            name (`str`): Folder, or id on the Hub.
            revision (`str`, *optional*): Branch, tag or commit of the repository.
        """
        folder = recommender_folder(name, revision)
        if folder is None:
            return None
        index = checked_index(folder)
        if index["kind"] != "language_model":
            raise ValueError(f"`model` {name} is a recommender of the kind {index['kind']!r}, not a language model.")
        catalog = Catalog.load(folder)
        tokenizer, prompt, trie = load_language_parts(folder, index, catalog)
        return cls(folder, tokenizer, catalog, prompt, trie, float(index["tau"]))


@dataclass(frozen=True)
class StartingPoint:
    """
    What a trainer of a language model begins with.

    Attributes:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Its weights can be trained.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Of the model.
        catalog ([`Catalog`]), prompt ([`Prompt`]), trie ([`ItemTrie`]): The items; each `None` where there are none.
        tau (`float`): Temperature of the first step.
        new_tokens (`list[int]`): Tokens of codes and items that tokenizer and model were given here.
        path_tokens (`list[int]`): Tokens of codes and items that a new adapter trains: those of a plain model.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    catalog: Catalog | None
    prompt: Prompt | None
    trie: ItemTrie | None
    tau: float
    new_tokens: list[int]
    path_tokens: list[int]

    @classmethod
    def of(
        cls,
        model: str | os.PathLike | PreTrainedModel,
        args: LanguageConfig,
        *,
        processing_class: PreTrainedTokenizerBase | None = None,
        catalog: Catalog | None = None,
        prompt: Prompt | None = None,
        trie: ItemTrie | None = None,
        quantization_config: Any = None,
        knowledge: SequenceKnowledge | None = None,
    ) -> "StartingPoint":
        """
        Put together what a trainer is given, what the folder of its model holds, and what has to be made.

        Args:
            model (`str`, `os.PathLike` or [`~transformers.PreTrainedModel`]): A folder or Hub id (of a recommender, of
                a model or of an adapter), or a model in memory.
            args ([`LanguageConfig`]): `model_init_kwargs`, `tau`, and the settings of a new prompt.
            processing_class, catalog, prompt, trie (*optional*): As given to the trainer. A catalog that is not that
                of the model's folder is refused. A tokenizer and a model in memory get the tokens of item paths.
            quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): Of a model given by name.
            knowledge ([`SequenceKnowledge`], *optional*): What collaborative tokens are to show, of a model that has
                none yet.
        """
        folder, revision = None, args.loading_options.get("revision")
        if not isinstance(model, PreTrainedModel | nn.Module):
            folder = RecommenderFolder.find(os.fspath(model), revision)
        if folder is not None:
            tokenizer = processing_class or folder.tokenizer
        else:
            tokenizer = processing_class or _load_tokenizer(model, revision)
        new_tokens: list[int] = []
        if folder is None and catalog is not None and prompt is None:
            new_tokens = add_path_tokens(tokenizer, catalog, args.item_path, args.history_path)
        if isinstance(model, nn.Module):
            loaded = model
            _refuse_unused(args, quantization_config)
        else:
            name = os.fspath(model) if folder is None else str(folder.folder)
            loaded = load_for_training(name, args.loading_options, quantization_config)
        refuse_router_loss(loaded)
        vocab_size = max(num_rows(loaded), len(tokenizer))
        if knowledge is not None:
            give_item_tokens(loaded, knowledge, vocab_size, args.seed)
        item_tokens = ItemTokens.of(loaded)
        catalog, prompt, trie = _resolve_items(folder, tokenizer, args, catalog, prompt, trie, item_tokens)
        tau = args.tau if args.tau is not None else 1.0 if folder is None else folder.tau
        path_tokens = []
        if folder is None and catalog is not None and prompt is not None:
            path_tokens = path_token_ids(tokenizer, catalog, prompt.item_path, prompt.history_path)
        start = cls(loaded, tokenizer, catalog, prompt, trie, tau, new_tokens, path_tokens)
        start.grow(loaded, args)
        if item_tokens is not None:
            item_tokens.wrap(loaded)
        if prompt is not None:
            check_positions(loaded.config, prompt.max_length)
            _check_vocabulary(prompt, loaded)
        return start

    def grow(self, model: PreTrainedModel, args: LanguageConfig) -> None:
        """Give a model the rows of the tokens that the tokenizer was given here; another copy gets the same ones."""
        if not self.new_tokens or self.catalog is None:
            return
        words = None
        if args.path_token_init == "words":
            words = words_under_tokens(self.tokenizer, self.catalog, args.item_path, args.history_path)
        grow_vocabulary(model, len(self.tokenizer), self.new_tokens, words, args.seed)

    def adapter_config(self, peft_config: PeftConfig, revision: str | None) -> PeftConfig:
        """The configuration of a new adapter on the model, at a revision, with what is trained beside it."""
        config = with_revision(peft_config, revision)
        if ItemTokens.of(self.model) is not None:
            config = train_projector(config, self.model)
        return train_path_tokens(config, self.model, self.path_tokens) if self.path_tokens else config


def model_name(model: str | os.PathLike | PreTrainedModel) -> str:
    """What a model is called: the last part of its folder or Hub id, or its class."""
    name = model.config.name_or_path if isinstance(model, nn.Module) else os.fspath(model)
    return Path(name).name or type(model).__name__


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of a token to fill masked places with."""
    tokens = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in tokens if token is not None)


def _load_tokenizer(model: str | os.PathLike | PreTrainedModel, revision: str | None) -> PreTrainedTokenizerBase:
    name = model.config.name_or_path if isinstance(model, nn.Module) else os.fspath(model)
    if not name:
        raise ValueError("`processing_class` is required for a model that was not loaded from a folder.")
    return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)


def _resolve_items(
    folder: RecommenderFolder | None,
    tokenizer: PreTrainedTokenizerBase,
    args: LanguageConfig,
    catalog: Catalog | None,
    prompt: Prompt | None,
    trie: ItemTrie | None,
    item_tokens: ItemTokens | None,
) -> tuple[Catalog | None, Prompt | None, ItemTrie | None]:
    """The items as given, those of the model's folder, or made."""
    if folder is not None:
        if catalog is not None and catalog.sha256 != folder.catalog.sha256:
            raise ValueError(
                f"`catalog` is not the one that {folder.folder} was trained with, so its rows may mean other items. "
                "Prepare the data from the same source, or train a model on this catalog first."
            )
        if catalog is not None and not folder.prompt.is_made_from(catalog):
            raise ValueError(
                f"`catalog` has other values of {', '.join(map(repr, folder.prompt.forms.columns))} than the one that "
                f"{folder.folder} was trained with, so the paths of its items are others. Prepare the data from the "
                "same source, or train a model on this catalog first."
            )
        catalog = folder.catalog
        if prompt is None and item_tokens is not None and folder.prompt.item_token_start is None:
            tokens = (item_tokens.vocab_size, item_tokens.knowledge.user_token)
            prompt = folder.prompt.with_item_tokens(tokenizer, catalog, *tokens)
        prompt = prompt or folder.prompt
        trie = trie or (folder.trie if prompt.sha256 == folder.prompt.sha256 else None)
    if catalog is None:
        return None, None, trie
    if prompt is not None:
        _refuse_other_paths(prompt, args)
        _warn_of_unused_settings(prompt, args)
    prompt = prompt or Prompt(
        tokenizer,
        catalog,
        form=args.prompt_form,
        max_length=args.max_length or 512,
        max_history=args.max_history,
        item_path=args.item_path,
        history_path=args.history_path,
        item_attributes=args.item_attributes,
        instruction=args.instruction,
        template=args.template,
        item_token_start=None if item_tokens is None else item_tokens.vocab_size,
        user_token=item_tokens is not None and item_tokens.knowledge.user_token,
    )
    check_item_tokens(item_tokens, prompt.item_token_start, prompt.user_token)
    report = prompt.report()
    if changed := {name: count for name, count in report.items() if name in _CHANGES and count}:
        logger.warning(f"Items whose text the prompt had to change: {changed} (see `Prompt.report`).")
    if (sharing := report.get("sharing")) and prompt.item_path != TITLE:  # titles are counted with the catalog
        logger.warning(
            f"{sharing} of {len(prompt)} items share their path ({prompt.item_path}) with another: they share a "
            "score and are listed in row order."
        )
    return catalog, prompt, ItemTrie.from_flat(*prompt.item_paths) if trie is None else trie


def _refuse_other_paths(prompt: Prompt, args: LanguageConfig) -> None:
    """Refuse item paths that are not those of a prompt which is given or comes with the model."""
    fields = type(args).__dataclass_fields__
    paths = {"item_path": prompt.item_path, "history_path": prompt.history_path or prompt.item_path}
    for name, known in paths.items():
        wanted = getattr(args, name)
        if wanted not in (fields[name].default, known):
            raise ValueError(
                f"`{name}` is {wanted!r}, but the prompt that is given or comes with the model has {known!r}, and so "
                f"have its trie and its tokens. Leave `{name}` out, or start from a language model that was not yet "
                "trained to recommend."
            )


def _warn_of_unused_settings(prompt: Prompt, args: LanguageConfig) -> None:
    """Settings that were changed from their default, and that a ready-made prompt has otherwise."""
    fields = type(args).__dataclass_fields__
    ignored = [
        f"`{name}` {getattr(args, name)!r} (the prompt has {getattr(prompt, setting)!r})"
        for name, setting in _PROMPT_SETTINGS.items()
        if getattr(args, name) != fields[name].default and getattr(args, name) != getattr(prompt, setting)
    ]
    if ignored:
        logger.warning(
            f"Not used, as the prompt is given or comes with the model: {', '.join(ignored)}. Give the trainer a "
            "`prompt` made with these settings to change it."
        )


def _check_vocabulary(prompt: Prompt, model: nn.Module) -> None:
    """Refuse a prompt with tokens that a model has no embeddings for."""
    largest, rows = prompt.largest_token, num_rows(model)
    if largest >= rows:
        raise ValueError(
            f"`prompt` holds token {largest}, but `model` has {rows} tokens. Let it grow with "
            "`hf_rec.models.language.path_tokens.grow_vocabulary`, or leave `prompt` out and set `item_path`."
        )


def _refuse_unused(args: LanguageConfig, quantization_config: Any) -> None:
    for name, value in (("model_init_kwargs", args.model_init_kwargs), ("quantization_config", quantization_config)):
        if value:
            raise ValueError(
                f"`{name}` goes with a `model` given by name, but it is a model in memory. Load it with "
                "these settings."
            )
