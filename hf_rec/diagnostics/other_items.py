"""The same model over other items: those of another catalog, or a few candidates in place of all."""

from typing import TYPE_CHECKING, Any

import numpy as np

from hf_rec.columns import HISTORY, HISTORY_TIMESTAMPS, TARGET, USER_ID
from hf_rec.diagnostics.ranks import RankSettings, mean_interval, paired_change, rank_targets
from hf_rec.metrics.ranking import metric_values, rank_bounds


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_rec.data.catalog import Catalog
    from hf_rec.generation.recommend import Recommender


def moved_to(recommender: "Recommender", catalog: "Catalog") -> "Recommender":
    """
    A model that reads text, over the items of another catalog.

    Raises:
        `ValueError`: For a model that knows items by number, which mean nothing elsewhere.
    """
    from hf_rec.data.prompts import Prompt
    from hf_rec.generation.recommend import LanguageModelRecommender
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
    trie = ItemTrie.build(prompt.encode_items()).csr()
    return LanguageModelRecommender(
        recommender.model, recommender.tokenizer, catalog, prompt, trie, recommender.tau, recommender.scoring
    )


def transfer(
    recommender: "Recommender", catalog: "Catalog", train: "Dataset", rows: "Dataset", settings: RankSettings
) -> dict[str, Any]:
    """
    Rank rows of another domain, untrained there, beside what needs no model: the popularity of its items, and chance.

    Args:
        recommender ([`~hf_rec.generation.recommend.Recommender`]): A model that reads text.
        catalog ([`~hf_rec.data.catalog.Catalog`]), train (`datasets.Dataset`), rows (`datasets.Dataset`): Items,
            training rows (for popularity) and rows to rank of the other domain.
        settings ([`RankSettings`]): How targets are ranked.

    Returns:
        `dict`: `items`, `rows`, and `ndcg` and `hit_rate`, each with the mean of `model` and `popularity`, that of
        `chance`, and the paired `change` from popularity to the model.
    """
    from hf_rec.generation.controls import PopularityRecommender

    moved = rank_targets(moved_to(recommender, catalog), rows, settings)
    popular = rank_targets(PopularityRecommender(catalog, train), rows, settings)
    result = {"items": len(catalog), "rows": len(rows)}
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


def sampled_ranking(
    recommender: "Recommender", rows: "Dataset", num_negatives: int = 99, k: int = 10, seed: int = 0
) -> dict[str, Any]:
    """
    Rank each target among random items outside the history, as many papers do; flattering, and here for comparison.

    The items of a row are drawn by (seed, user) and never by the target. Ties count by their expected place.

    Args:
        recommender ([`~hf_rec.generation.recommend.Recommender`]): Any recommender.
        rows (`datasets.Dataset`): Split rows.
        num_negatives (`int`, *optional*, defaults to `99`): Items beside the target.
        k (`int`, *optional*, defaults to `10`), seed (`int`, *optional*, defaults to `0`): Cut-off, and seed of the
            draws.

    Returns:
        `dict`: `protocol`, and mean and interval of `ndcg` and `hit_rate` at `k` and `2 * k`.
    """
    catalog, num_items = recommender.catalog, len(recommender.catalog)
    if not 1 <= num_negatives < num_items:
        raise ValueError(f"`num_negatives` must be between 1 and {num_items - 1}, got {num_negatives}.")
    users = list(map(str, rows[USER_ID]))
    candidates = [
        [target, *_negatives(user, {*history, target}, num_items, num_negatives, seed)]
        for user, history, target in zip(users, rows[HISTORY], rows[TARGET], strict=True)
    ]
    histories = [[catalog.ids[row] for row in history] for history in rows[HISTORY]]
    times = list(rows[HISTORY_TIMESTAMPS]) if HISTORY_TIMESTAMPS in rows.column_names else []
    known = bool(times) and all(len(one) == len(other) for one, other in zip(times, histories, strict=True))
    raw = [[catalog.ids[row] for row in listed] for listed in candidates]
    scores = recommender.score(histories, raw, timestamps=times if known else None)
    bounds = [rank_bounds(values[None], np.array([0])) for values in scores]
    better, tied = (np.concatenate(parts) for parts in zip(*bounds, strict=True))
    names = [f"{name}@{cut}" for cut in (k, 2 * k) for name in ("ndcg", "hit_rate")]
    metrics = {name: mean_interval(metric_values(better, tied, name), users) for name in names}
    return {"protocol": f"1+{num_negatives}/seed={seed}", "rows": len(rows), **metrics}


def _negatives(user: str, excluded: set[int], num_items: int, number: int, seed: int) -> list[int]:
    """
    The first items outside `excluded` in an order that depends on user and seed alone; fewer if there are no more.
    """
    order = np.random.default_rng([seed, *user.encode("utf-8", "surrogatepass")])
    found: dict[int, None] = {}
    while len(found) < min(number, num_items - len(excluded)):
        for item in order.integers(0, num_items, 2 * number).tolist():
            if item not in excluded and len(found) < number:
                found[item] = None
    return list(found)
