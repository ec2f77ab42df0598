"""
Collaborative tokens in a recommender folder: settings, the items that are known, and the sequence model itself, so
that the folder needs nothing from outside. The projector is among the weights of the language model or its adapter.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from hf_rec.hub.files import FULL_WEIGHTS
from hf_rec.models.language.item_tokens import MODULE, ItemTokens, SequenceKnowledge
from hf_rec.models.loading import load_language_model
from hf_rec.models.sequence.loading import load_sequence_model


FOLDER = "item_tokens"
SETTINGS_FILE, KNOWN_FILE, MODEL_FOLDER = "settings.json", "known_items.safetensors", "sequence_model"


def save_item_tokens(folder: Path, item_tokens: ItemTokens) -> None:
    """Write the folder `item_tokens` into a recommender folder."""
    knowledge, place = item_tokens.knowledge, folder / FOLDER
    place.mkdir(parents=True)
    knowledge.model.save_pretrained(place / MODEL_FOLDER)
    save_file({"known": knowledge.known.cpu().numpy()}, place / KNOWN_FILE)
    settings = {
        "vocab_size": item_tokens.vocab_size,
        "features": knowledge.features,
        "user_token": knowledge.user_token,
        "scales": knowledge.scales,
    }
    (place / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_item_tokens(folder: str | os.PathLike) -> ItemTokens | None:
    """What [`save_item_tokens`] wrote; `None` where a recommender folder has none."""
    place = Path(folder) / FOLDER
    if not (place / SETTINGS_FILE).is_file():
        return None
    settings = json.loads((place / SETTINGS_FILE).read_bytes())
    known = torch.from_numpy(np.array(load_file(place / KNOWN_FILE)["known"]))
    vocab_size = settings.pop("vocab_size")
    return ItemTokens(
        SequenceKnowledge(load_sequence_model(place / MODEL_FOLDER), known=known, **settings), vocab_size
    )


def load_whole_model(name: str | os.PathLike, **options: Any) -> PreTrainedModel:
    """[`~hf_rec.models.loading.load_language_model`], with collaborative tokens where the folder has them."""
    item_tokens = read_item_tokens(name)
    if item_tokens is None:
        return load_language_model(name, **options)
    with _projector_is_expected():
        model = load_language_model(name, **options)
    item_tokens.attach(model)
    load_projector(model, name)
    item_tokens.wrap(model)
    return model


def load_projector(model: PreTrainedModel, folder: str | os.PathLike) -> None:
    """Read the projector from the weights of a whole model; nothing happens where they have none."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(Path(folder).glob(FULL_WEIGHTS[0])):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(f"{MODULE}.")]  # noqa: SIM118, not a dict
            found |= {name.removeprefix(f"{MODULE}."): file.get_tensor(name) for name in names}
    if not found:
        return
    try:
        model.get_submodule(MODULE).load_state_dict(found)
    except RuntimeError as error:
        raise ValueError(
            f"The weights in {folder} do not fit its folder {FOLDER}: {error} Copy the folder again."
        ) from error


@contextmanager
def _projector_is_expected() -> Iterator[None]:
    """Without the report of transformers on the projector, which the plain model has no place for."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_tells_of_more)
    try:
        yield
    finally:
        logger.removeFilter(_tells_of_more)


def _tells_of_more(record: logging.LogRecord) -> bool:
    lines = [line for line in record.getMessage().splitlines() if "|" in line and ("UNEXPECTED" in line)]
    return not lines or not all(MODULE in line for line in lines) or "MISSING" in record.getMessage()
