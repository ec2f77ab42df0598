"""The same model over the items of another catalog."""

from typing import TYPE_CHECKING, Any

import numpy as np

from hf_rec.diagnostics.ranked_targets import RankSettings, mean_interval, paired_change, rank_rows
from hf_rec.metrics.ranking import metric_values


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_rec.data.catalog import Catalog
    from hf_rec.recommenders.contract import Recommender


def moved_to(recommender: "Recommender", catalog: "Catalog") -> "Recommender":
    """
    A model that reads text, over the items of another catalog.

    Raises:
        `ValueError`: For a model that knows items by number, which mean nothing elsewhere.
    """
    from hf_rec.data.prompts.next_item import Prompt
    from hf_rec.recommenders.language_model import LanguageModelRecommender
    from hf_rec.trie.item_trie import ItemTrie

    if hasattr(recommender, "for_catalog"):
        return recommender.for_catalog(catalog)
    if not isinstance(recommender, LanguageModelRecommender):
        raise ValueError(
            f"A {type(recommender).__name__} knows its items by number, so it cannot be moved to another catalog: "
            "only models that read text can."
        )
    settings = ("form", "max_length", "max_history", "max_item_tokens", "separator", "instruction")
    prompt = Prompt(recommender.tokenizer, catalog, **{name: getattr(recommender.prompt, name) for name in settings})
    trie = ItemTrie.from_flat(*prompt.item_paths).csr()
    return LanguageModelRecommender(
        recommender.model, recommender.tokenizer, catalog, prompt, trie, recommender.tau, recommender.scoring
    )


def transfer(
    recommender: "Recommender", catalog: "Catalog", train: "Dataset", rows: "Dataset", settings: RankSettings
) -> dict[str, Any]:
    """
    Rank rows of another domain, untrained there, beside what needs no model: the popularity of its items, and chance.

    Args:
        recommender ([`~hf_rec.recommenders.contract.Recommender`]): A model that reads text.
        catalog ([`~hf_rec.data.catalog.Catalog`]), train (`datasets.Dataset`), rows (`datasets.Dataset`): Items,
            training rows (for popularity) and rows to rank of the other domain.
        settings ([`RankSettings`]): How targets are ranked.

    Returns:
        `dict`: `items`, `rows`, and `ndcg` and `hit_rate`, each with the mean of `model` and `popularity`, that of
        `chance`, and the paired `change` from popularity to the model.
    """
    from hf_rec.recommenders.controls import PopularityRecommender

    moved = rank_rows(moved_to(recommender, catalog), rows, settings)
    popular = rank_rows(PopularityRecommender(catalog, train), rows, settings)
    result: dict[str, Any] = {"items": len(catalog), "rows": len(rows)}
    for name in ("ndcg", "hit_rate"):
        metric = f"{name}@{settings.k}"
        chance = metric_values(np.array([0]), np.array([len(catalog) - 1]), metric)[0]
        result[name] = {
            "model": mean_interval(moved.values(metric), moved.users),
            "popularity": mean_interval(popular.values(metric), popular.users),
            "chance": float(chance),
            "change": paired_change(popular.values(metric), moved.values(metric), moved.users),
        }
    return result
