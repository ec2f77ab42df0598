"""The model card of a recommender folder."""

import json
import re
from pathlib import Path
from typing import Any

from hf_rec.data.catalog import Catalog
from hf_rec.hub.files import ADAPTER_FILES


def model_card(folder: Path, partial: Path, index: dict[str, Any], catalog: Catalog) -> str:
    """Model card: what the folder is, and how to use it."""
    config = next((path for path in (partial / ADAPTER_FILES[0], folder / ADAPTER_FILES[0]) if path.is_file()), None)
    base = json.loads(config.read_bytes()).get("base_model_name_or_path") if config else None
    is_hub_id = base and re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
    example = json.dumps(catalog.ids[: min(3, len(catalog))])
    settings = {
        "Items": len(catalog),
        "Kind": index["kind"],
        "Ranked by": index["scoring"],
        "Temperature": index["tau"],
        **({"Base model": base} if base else {}),
        **{f"{name} version": value for name, value in index["versions"].items()},
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
    return f"""---
library_name: hf_rec
tags:
- recommendation
- sequential-recommendation
{f"base_model: {base}" + chr(10) if is_hub_id else ""}---

# {folder.name}

Recommends the next item to a user from the items chosen so far.

```python
from hf_rec import load_recommender

recommender = load_recommender("{folder.name}")  # this folder, or the id of this repository
found = recommender.recommend([{example}], k=10)
print(found.item_ids[0], found.scores[0], found.certified[0])
```

| | |
|---|---|
{table}

`catalog.jsonl` lists the items. Scores are {_SCORES.get(index["scoring"], "those of the model")}.
"""


_SCORES = {
    "valid": "log-probabilities of items: each token of a title competes with the tokens that also lead to an item",
    "full_vocab": "log-probabilities of the items' tokens among all tokens",
}
