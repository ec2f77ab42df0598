"""A fused recommender as a folder: each of its recommenders stands in a folder of its own inside, a whole one."""

import os
from pathlib import Path

from hf_rec.hub.parts import empty_folder, part_name, save_part
from hf_rec.hub.save import save_recommender
from hf_rec.recommenders.fused import FusedRecommender


def save_fused(folder: str | os.PathLike, recommender: FusedRecommender) -> None:
    """
    Write a fused recommender as one folder. A part that was loaded from a folder is copied as it stands there, with
    its temperature of now; another is saved from memory.

    Args:
        folder (`str` or `os.PathLike`): New or empty.
        recommender ([`FusedRecommender`]): What to save.

    Raises:
        `FileExistsError`: Where the folder holds something.
        `ValueError`: Where a part is of a kind that its trainer alone can save, and was not loaded from a folder.
    """
    folder = empty_folder(folder)

    def write_parts(partial: Path) -> None:
        for place, part in enumerate(recommender.recommenders):
            save_part(partial / part_name(place), part)

    single = recommender.lengths is None
    save_recommender(
        folder,
        catalog=recommender.catalog,
        kind=FusedRecommender.kind,
        scoring="fused",
        extra={
            "weights": recommender.weights[0].tolist() if single else recommender.weights.tolist(),
            "lengths": recommender.lengths,
            "fit": recommender.fit,
        },
        write_more=write_parts,
    )
