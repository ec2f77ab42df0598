"""Other items for a language model without training: another catalog, prompt and trie beside its weights."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_rec.data.catalog import CATALOG_FILE, HEADER_FILE, Catalog
from hf_rec.data.prompts.next_item import PATHS_FILE, PROMPT_FILE, Prompt
from hf_rec.files import replacing_folder
from hf_rec.hub.card import model_card
from hf_rec.hub.files import CARD_FILE, RECOMMENDER_FILE, hashes_of, index_text
from hf_rec.hub.load import checked_index, load_language_parts
from hf_rec.hub.parts import moved_name
from hf_rec.trie.item_trie import ARRAYS_FILE, INDEX_FILE, MARISA_FILE, ItemTrie


_OF_ITEMS = (CATALOG_FILE, HEADER_FILE, PATHS_FILE, PROMPT_FILE, MARISA_FILE, ARRAYS_FILE, INDEX_FILE)


@contextmanager
def changing(folder: str | os.PathLike) -> Iterator[None]:
    """
    Let one process at a time read a folder and change it. The lock goes with the process, however that ends.

    Raises:
        `BlockingIOError`: Where another one does.
    """
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise BlockingIOError(f"Another process changes {folder}. Try again when it is done.") from None
    try:
        yield
    finally:
        os.close(handle)


def change_catalog(
    folder: str | os.PathLike, change: Callable[[Catalog], Catalog], out: str | os.PathLike | None = None
) -> Catalog:
    """
    Give a saved language model other items, without training: the paths of all items are made anew, and the weights
    are those of before.

    Args:
        folder (`str` or `os.PathLike`): Folder of a language model.
        change (`Callable[[Catalog], Catalog]`): The new items, from those of the folder. Rows may mean other items
            than before.
        out (`str` or `os.PathLike`, *optional*): New folder to write. By default the folder itself is changed, once
            all that is new has been written beside it.

    Returns:
        [`Catalog`]: The new items.

    Raises:
        `ValueError`: Where the weights know the items by number, or a new item cannot be written with the tokens that
            there are; see [`~hf_rec.Prompt.with_catalog`].
        `BlockingIOError`: Where another process changes the folder.
        `FileExistsError`: Where `out` holds something.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder. Download a repository of the Hub first.")
    out = folder if out is None else Path(out).absolute()
    if out != folder and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty. Choose a new folder.")
    with changing(folder):
        index = checked_index(folder)
        if index["kind"] != "language_model":
            raise ValueError(
                f"{folder} is of the kind {index['kind']!r}, whose weights know their items by number. Only the items "
                "of a language model change without training."
            )
        old = Catalog.load(folder)
        tokenizer, prompt, _ = load_language_parts(folder, index, old)
        catalog = change(old)
        _write(folder, index, catalog, prompt.with_catalog(tokenizer, catalog), out)
    return catalog


def _write(folder: Path, index: dict[str, Any], catalog: Catalog, prompt: Prompt, out: Path) -> None:
    trie = ItemTrie.from_flat(*prompt.item_paths)
    kept = [name for name in index["files"] if name not in _OF_ITEMS]
    if out != folder and out.is_dir():
        out.rmdir()  # so that all of it appears at once
    with replacing_folder(out, last=RECOMMENDER_FILE) as partial:
        if out != folder:
            for name in kept:
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, partial / name)
            if index["base"] is not None and index["base"].get("path"):
                index["base"]["path"] = moved_name(folder, index["base"]["path"], out)
        for part in (catalog, prompt, trie):
            part.save(partial)
        index["hashes"] |= {"catalog": catalog.sha256, "prompt": prompt.sha256, "trie": trie.sha256}
        written = [name for name in _OF_ITEMS if (partial / name).is_file()]
        index["files"] = {name: index["files"][name] for name in kept} | hashes_of(partial, written)
        (partial / CARD_FILE).write_text(model_card(out, index, catalog), encoding="utf-8")
        (partial / RECOMMENDER_FILE).write_text(index_text(index), encoding="utf-8")
