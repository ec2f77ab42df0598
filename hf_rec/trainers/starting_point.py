"""A recommender folder as something to train on from: weights that can be trained, and what they were trained with."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import AutoPeftModelForCausalLM, PeftConfig
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.hub import read_index
from hf_rec.hub.files import ADAPTER_FILES, INDEX_FILE, NOT_UPLOADED, tokenizer_sha256
from hf_rec.trie.item_trie import ItemTrie


@dataclass(frozen=True)
class StartingPoint:
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
    def find(cls, name: str | os.PathLike, revision: str | None = None) -> "StartingPoint | None":
        """
        Read a folder or a Hub repository; `None` where it holds no `recommender.json`.

        Args:
            name (`str` or `os.PathLike`): Folder, or id on the Hub.
            revision (`str`, *optional*): Branch, tag or commit of the repository.
        """
        folder = Path(name)
        if not folder.is_dir():
            try:
                hf_hub_download(str(name), INDEX_FILE, revision=revision)
            except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError):
                return None
            folder = Path(snapshot_download(str(name), revision=revision, ignore_patterns=NOT_UPLOADED))
        if not (folder / INDEX_FILE).is_file():
            return None
        index = read_index(folder)
        if index["kind"] != "language_model":
            raise ValueError(f"`model` {name} is a recommender of the kind {index['kind']!r}, not a language model.")
        tokenizer, catalog = AutoTokenizer.from_pretrained(folder, trust_remote_code=False), Catalog.load(folder)
        prompt, trie = Prompt.load(folder, tokenizer, catalog), ItemTrie.load(folder)
        found = {
            "catalog": catalog.sha256,
            "prompt": prompt.sha256,
            "trie": trie.sha256,
            "tokenizer": tokenizer_sha256(tokenizer),
        }
        for part, sha256 in found.items():
            if sha256 != index["hashes"].get(part):
                raise ValueError(
                    f"The {part} in {folder} is not the one that the weights were saved with. Copy the whole folder "
                    "again."
                )
        return cls(folder, tokenizer, catalog, prompt, trie, float(index["tau"]))


@dataclass(frozen=True)
class Items:
    """What a trainer knows of items; each `None` where there are none."""

    catalog: Catalog | None
    prompt: Prompt | None
    trie: ItemTrie | None

    @property
    def hashes(self) -> list[str | None]:
        """Hash of each."""
        return [part and part.sha256 for part in (self.catalog, self.prompt, self.trie)]


def resolve_items(
    start: StartingPoint | None,
    tokenizer: PreTrainedTokenizerBase,
    catalog: Catalog | None,
    prompt: Prompt | None,
    trie: ItemTrie | None,
    **prompt_settings: Any,
) -> Items:
    """
    The items as given, those of the model's folder, or made.

    Args:
        start ([`StartingPoint`] or `None`): The model's folder.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): For a new prompt.
        catalog, prompt, trie (*optional*): As given to the trainer. A catalog that is not the folder's is refused.
        prompt_settings: Arguments of a new [`Prompt`].
    """
    if start is not None:
        if catalog is not None and catalog.sha256 != start.catalog.sha256:
            raise ValueError(
                f"`catalog` is not the one that {start.folder} was trained with, so its rows may mean other items. "
                "Prepare the data from the same source, or train a model on this catalog first."
            )
        return Items(start.catalog, prompt or start.prompt, start.trie if trie is None else trie)
    if catalog is None:
        return Items(None, None, trie)
    prompt = prompt or Prompt(tokenizer, catalog, **prompt_settings)
    return Items(catalog, prompt, ItemTrie.build(prompt.encode_items()) if trie is None else trie)


def has_adapter(folder: str | os.PathLike) -> bool:
    """Whether a folder holds an adapter instead of whole weights."""
    return Path(folder, ADAPTER_FILES[0]).is_file()


def load_trainable_adapter(folder: str | os.PathLike, args: DPOConfig, quantization_config=None):
    """
    Load an adapter on its base model, ready to be trained further.

    Args:
        folder (`str` or `os.PathLike`): Folder with the adapter.
        args ([`~trl.DPOConfig`]): `model_init_kwargs` are those of the base model; `dtype` is float32 without them.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*): Of the base model.

    Returns:
        [`~peft.PeftModel`]: With the one adapter `"default"`.
    """
    options = {"dtype": "float32"} | (args.model_init_kwargs or {})
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    return AutoPeftModelForCausalLM.from_pretrained(folder, is_trainable=True, **options, trust_remote_code=False)


def context_length(model: str | PreTrainedModel) -> int | None:
    """Positions that a model has, or the one below an adapter in a folder, as far as its configuration tells."""
    if isinstance(model, str) and has_adapter(model):
        model = PeftConfig.from_pretrained(model).base_model_name_or_path
    config = AutoConfig.from_pretrained(model, trust_remote_code=False) if isinstance(model, str) else model.config
    return getattr(config.get_text_config(), "max_position_embeddings", None)
