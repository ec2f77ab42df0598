"""A re-ranked recommender as a folder: retriever and re-ranker stand in folders of their own inside, whole ones."""

import os
from pathlib import Path

from hf_rec.hub.parts import empty_folder, part_name, save_part
from hf_rec.hub.save import save_recommender
from hf_rec.recommenders.reranked import RerankedRecommender


def save_reranked(folder: str | os.PathLike, recommender: RerankedRecommender) -> None:
    """
    Write a re-ranked recommender as one folder. A part that was loaded from a folder is copied as it stands there;
    another is saved from memory.

    Args:
        folder (`str` or `os.PathLike`): New or empty.
        recommender ([`RerankedRecommender`]): What to save.

    Raises:
        `FileExistsError`: Where the folder holds something.
        `ValueError`: Where the retriever is of a kind that its trainer alone can save, and was not loaded from a
            folder.
    """
    folder = empty_folder(folder)

    def write_parts(partial: Path) -> None:
        for place, part in enumerate((recommender.retriever, recommender.reranker)):
            save_part(partial / part_name(place), part)

    save_recommender(
        folder,
        catalog=recommender.catalog,
        kind=recommender.kind,
        scoring=recommender.kind,
        extra={"n": recommender.n},
        write_more=write_parts,
    )
