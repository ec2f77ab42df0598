"""The model card of a recommender folder."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from hf_rec.data.catalog import Catalog


# Stands in the card of a folder; a push writes the id of the repository in its place
LOAD_CALL = 'load_recommender(".")'
_KINDS = {
    "language_model": "a language model that writes the next item; a list is a search over the items it can write",
    "llm_srec": "a language model that gives users and items vectors; the score of an item is their dot product",
    "sequence": "a sequence model over item numbers; the score of an item is a dot product with its vector",
    "fused": "recommenders that judge together; the score of an item is a weighted sum of their log-probabilities",
    "grounded": "a language model that writes a text, and a base model that finds the items whose texts are nearest",
    "reranker": "a language model that judges candidates with one token",
    "reranked": "a recommender whose first places a language model puts in order",
    "popularity": "a control: what was chosen most often",
    "recent_popularity": "a control: what was chosen most often of late",
    "last_item": "a control: what most often came after the last item",
}
_SCORES = {
    "valid": "log-probabilities of items: each token of a title competes with the tokens that also lead to an item",
    "full_vocab": "log-probabilities of the items' tokens among all tokens",
    "fused": "weighted sums of log-probabilities",
    "yes_no": "logs of the odds of yes",
    "letters": "log-probabilities of the candidates' letters",
    "reranked": "those of the re-ranker, and below them those of the retriever",
    "grounded": "minus the distance between two texts, from 0 to 1",
}


def model_card(folder: Path, index: dict[str, Any], catalog: Catalog) -> str:
    """
    Model card: what the folder is, and how to use it.

    Args:
        folder (`Path`): Its name is the title.
        index (`dict`): Content of `recommender.json`. A base model that is a folder of this machine is not named.
        catalog ([`Catalog`]): Items.
    """
    base = index["base"]
    base_model = base["name"] if base is not None and not base["local"] else None
    data = ModelCardData(
        library_name="hf_rec", tags=["recommendation", "sequential-recommendation"], base_model=base_model
    )
    facts = (
        {
            "Items": len(catalog),
            "Kind": _KINDS.get(index["kind"], index["kind"]),
            "Weights": {"adapter": "an adapter on its base model", "full": "whole"}.get(index["weights"], "none"),
            "Base model": base_model,
            "Temperature": None if index["kind"] in ("fused", "grounded", "reranker", "reranked") else index["tau"],
        }
        | _fusion(index["extra"])
        | _grounding(index["extra"])
    )
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items() if value is not None)
    versions = ", ".join(f"{name} {value}" for name, value in index["versions"].items())
    example = json.dumps(catalog.ids[: min(3, len(catalog))], ensure_ascii=False)
    return str(
        ModelCard(
            f"""---
{data.to_yaml()}
---

# {folder.name}

Recommends the next item to a user from the items chosen so far.

```python
from hf_rec import load_recommender

recommender = {LOAD_CALL}  # the path of this folder, or the id of its repository
found = recommender.recommend([{example}], k=10)
print(found.item_ids[0], found.scores[0], found.certified[0])
```

| | |
|---|---|
{table}

`catalog.jsonl` lists the items. Scores are {_SCORES.get(index["scoring"], "those of the model")}. `recommender.json`
holds the hash of every file that loading needs; a folder in which one differs is not loaded. Saved with {versions}.
"""
        )
    )


def _fusion(extra: dict[str, Any]) -> dict[str, str]:
    """Weights of a fused recommender, for each bucket of history lengths, and how they were chosen."""
    if "weights" not in extra:
        return {}
    if extra["lengths"] is None:
        facts = {"Weights of `part-0`, `part-1`, ...": ", ".join(f"{weight:g}" for weight in extra["weights"])}
    else:
        facts = {
            f"Weights from {length} items of history on": ", ".join(f"{weight:g}" for weight in weights)
            for length, weights in zip(extra["lengths"], extra["weights"], strict=True)
        }
    fit = extra["fit"]
    if fit is None:
        return facts
    return facts | {"Weights chosen by": f"{fit['metric']} of {fit['rows']} rows of `{fit['split']}`"}


def _grounding(extra: dict[str, Any]) -> dict[str, str]:
    """How far the second recommender of a grounded one counts, and how that was chosen."""
    if "gamma" not in extra:
        return {}
    fit, facts = extra["fit"], {"Weight of `part-1` (gamma)": f"{extra['gamma']:g}"}
    if fit is None:
        return facts
    return facts | {"Gamma chosen by": f"{fit['metric']} of {fit['rows']} rows of `{fit['split']}`"}
