"""
Tokens of their own for items and codes: one added token for each item, or for each code of each level.

They are control tokens of the tokenizer, so that no text ever turns into one.
"""

from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.path_forms import CODES, ID, PathForms, is_text, item_codes, item_texts
from hf_rec.data.prompts.text_encoder import PlainTextEncoder


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def add_path_tokens(
    tokenizer: "PreTrainedTokenizerBase", catalog: Catalog, item_path: str, history_path: str | None = None
) -> list[int]:
    """
    Add to a tokenizer the tokens that the paths of a catalog need and that it lacks.

    The model has to grow too: [`~hf_rec.models.language.path_tokens.grow_vocabulary`]. A trainer that makes the prompt
    does both.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Changed in place.
        catalog ([`Catalog`]): Items.
        item_path (`str`), history_path (`str`, *optional*): As of [`Prompt`].

    Returns:
        `list[int]`: Ids of the tokens that are new.

    Example:

    ```python
    new_ids = add_path_tokens(tokenizer, catalog, "codes:codes_rqvae")
    grow_vocabulary(model, len(tokenizer), new_ids)
    prompt = Prompt(tokenizer, catalog, item_path="codes:codes_rqvae")
    ```
    """
    from transformers import AddedToken

    known = tokenizer.get_added_vocab()
    wanted: dict[str, None] = {}
    for form in PathForms.parse(item_path, history_path).all:
        if not is_text(form):
            names, _ = _names(catalog, form)
            wanted |= dict.fromkeys(name for name in names if name not in known)
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in wanted], special_tokens=True)
    found = tokenizer.get_added_vocab()
    return sorted(found[name] for name in wanted)


def path_token_ids(
    tokenizer: "PreTrainedTokenizerBase", catalog: Catalog, item_path: str, history_path: str | None = None
) -> list[int]:
    """Ids of all tokens that [`add_path_tokens`] adds, whenever they were added; the arguments are the same."""
    forms = [form for form in PathForms.parse(item_path, history_path).all if not is_text(form)]
    return sorted({token for form in forms for token in np.unique(token_paths(tokenizer, catalog, form)).tolist()})


def token_paths(tokenizer: "PreTrainedTokenizerBase", catalog: Catalog, form: str) -> np.ndarray:
    """
    Paths of all items under `"id"` or `"codes:<column>"`.

    Returns:
        `np.ndarray` of `int64`, shape `(items, tokens)`: In row order.

    Raises:
        `ValueError`: The tokenizer lacks a token; the message names the item.
    """
    names, places = _names(catalog, form)
    known = tokenizer.get_added_vocab()
    ids = np.array([known.get(name, -1) for name in names], dtype=np.int64)
    paths = ids[places]
    if (paths < 0).any():
        row, level = np.argwhere(paths < 0)[0].tolist()
        name = names[places[row, level]]
        if (paths < 0).all():
            raise ValueError(
                f"`tokenizer` lacks the tokens of {form!r}, such as {name}. Add them with `add_path_tokens` and let "
                "the model grow with `grow_vocabulary`, or give `item_path` to the trainer, which does both."
            )
        raise ValueError(
            f"`tokenizer` has tokens of {form!r}, but not {name}, which item {catalog.ids[row]!r} needs at level "
            f"{level}: it is outside the codes or items that the tokenizer was made for. Train a model on this "
            "catalog, or take the codes from the ones that exist."
        )
    return paths


def words_under_tokens(
    tokenizer: "PreTrainedTokenizerBase", catalog: Catalog, item_path: str, history_path: str | None = None
) -> dict[int, np.ndarray]:
    """
    The words that tell about each path token: those of the titles of its items.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): With the tokens.
        catalog ([`Catalog`]), item_path (`str`), history_path (`str`, *optional*): As of [`add_path_tokens`].

    Returns:
        `dict[int, np.ndarray]`: Id of a path token -> ids of all tokens of the titles of the items under it.
    """
    titles = PlainTextEncoder(tokenizer).encode_batch(item_texts(catalog, "title"))
    words = np.concatenate([np.asarray(title, dtype=np.int64) for title in titles])
    item_of_word = np.repeat(np.arange(len(titles)), list(map(len, titles)))
    found: dict[int, np.ndarray] = {}
    for form in PathForms.parse(item_path, history_path).all:
        if is_text(form):
            continue
        for level in token_paths(tokenizer, catalog, form).T:
            tokens = level[item_of_word]
            order = np.argsort(tokens, kind="stable")
            ids, starts = np.unique(tokens[order], return_index=True)
            found |= dict(zip(ids.tolist(), np.split(words[order], starts[1:]), strict=True))
    return found


def _names(catalog: Catalog, form: str) -> tuple[list[str], np.ndarray]:
    """Names of the tokens of a form, each once, and which of them are the path of each item."""
    if form == ID:
        names = [f"<|item:{quote(str(item_id), safe='')}|>" for item_id in catalog.ids]
        if len(set(names)) < len(names):
            raise ValueError("The catalog has an id both as a number and as text: 'id' paths cannot tell them apart.")
        return names, np.arange(len(names))[:, None]
    column = form.removeprefix(CODES)
    codes = item_codes(catalog, column)
    names, places = [], np.empty_like(codes)
    for level in range(codes.shape[1]):
        values, inverse = np.unique(codes[:, level], return_inverse=True)
        places[:, level] = inverse + len(names)
        names += [f"<|{quote(column, safe='')}:{level}:{code}|>" for code in values.tolist()]
    return names, places
