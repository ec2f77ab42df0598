"""A grounded recommender as a folder: writer and weight in folders of their own, item vectors, and the base model."""

import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_rec.hub.parts import empty_folder, part_name, save_part
from hf_rec.hub.save import save_recommender
from hf_rec.models.weight_files import is_hub_id
from hf_rec.recommenders.grounded import GroundedRecommender


BASE_FOLDER = "base"
ITEM_TEXTS_FILE = "item_texts.safetensors"


def save_grounded(folder: str | os.PathLike, recommender: GroundedRecommender) -> None:
    """
    Write a grounded recommender as one folder. The base model stands in it whole, unless it was loaded from the Hub:
    then the folder names its repository and commit.

    Args:
        folder (`str` or `os.PathLike`): New or empty.
        recommender ([`GroundedRecommender`]): What to save. Its items are encoded first where they are not.

    Raises:
        `FileExistsError`: Where the folder holds something.
        `ValueError`: Where a part is of a kind that its trainer alone can save, and was not loaded from a folder.
    """
    folder, base = empty_folder(folder), _hub_base(recommender)
    vectors = recommender.item_vectors

    def write_parts(partial: Path) -> None:
        save_part(partial / part_name(0), recommender.writer)
        if recommender.weight is not None:
            save_part(partial / part_name(1), recommender.weight)
        if base is None:
            recommender.base.model.save_pretrained(partial / BASE_FOLDER)
            recommender.base.tokenizer.save_pretrained(partial / BASE_FOLDER)
        save_file({"vectors": vectors.cpu().contiguous()}, partial / ITEM_TEXTS_FILE)

    save_recommender(
        folder,
        catalog=recommender.catalog,
        kind=GroundedRecommender.kind,
        scoring="grounded",
        extra={
            "gamma": recommender.gamma,
            "num_beams": recommender.num_beams,
            "fit": recommender.fit,
            "base": base,
            "texts_sha256": recommender.texts_sha256,
        },
        write_more=write_parts,
    )


def load_item_vectors(folder: Path) -> Tensor:
    """The vectors that [`save_grounded`] wrote."""
    path = folder / ITEM_TEXTS_FILE
    try:
        return load_file(path)["vectors"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is truncated or corrupted ({error!r}). Copy the folder again.") from error


def _hub_base(recommender: GroundedRecommender) -> dict[str, Any] | None:
    """Repository and commit of a base model of the Hub; `None` for one from a folder or from memory."""
    config = recommender.base.model.config
    name, commit = config._name_or_path, getattr(config, "_commit_hash", None)
    if commit is None or Path(name).is_dir() or not is_hub_id(name):
        return None
    return {"name": name, "revision": commit}
