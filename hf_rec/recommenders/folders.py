"""
Recommenders that are read from folders, or written to them, by recommenders. What a folder is, `hf_rec.hub` knows; it
stands above this room, so each function asks it when it is called.
"""

import os
from typing import TYPE_CHECKING

import torch


if TYPE_CHECKING:
    from hf_rec.recommenders.contract import Recommender
    from hf_rec.recommenders.fused import FusedRecommender
    from hf_rec.recommenders.grounded import GroundedRecommender
    from hf_rec.recommenders.reranked import RerankedRecommender


def load(folder: str | os.PathLike, device: str | torch.device) -> "Recommender":
    """[`~hf_rec.hub.load_recommender`]."""
    from hf_rec.hub import load_recommender

    return load_recommender(folder, device=device)


def save(folder: str | os.PathLike, recommender: "FusedRecommender") -> None:
    """[`~hf_rec.hub.save_fused`]."""
    from hf_rec.hub import save_fused

    save_fused(folder, recommender)


def save_grounded(folder: str | os.PathLike, recommender: "GroundedRecommender") -> None:
    """[`~hf_rec.hub.save_grounded`]."""
    from hf_rec.hub import save_grounded

    save_grounded(folder, recommender)


def save_reranked(folder: str | os.PathLike, recommender: "RerankedRecommender") -> None:
    """[`~hf_rec.hub.save_reranked`]."""
    from hf_rec.hub import save_reranked

    save_reranked(folder, recommender)
