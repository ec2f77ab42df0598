"""
Recommenders inside the folder of another one: each stands in a folder of its own there, a whole one.
"""

import json
import os
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from hf_rec.hub.files import PLACES, RECOMMENDER_FILE, check_folder, index_text, read_index
from hf_rec.hub.save import save_control, save_recommender
from hf_rec.recommenders.contract import Recommender
from hf_rec.recommenders.controls import Control
from hf_rec.recommenders.fused import FusedRecommender
from hf_rec.recommenders.grounded import GroundedRecommender
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.recommenders.reranked import RerankedRecommender
from hf_rec.recommenders.reranker import Reranker
from hf_rec.recommenders.sequence import SequenceRecommender
from hf_rec.trie.item_trie import ItemTrie


# Recommenders of recommenders, which save their parts themselves
COMPOSED = (FusedRecommender, GroundedRecommender, RerankedRecommender)


def part_name(place: int) -> str:
    """Folder of a recommender inside that of another one."""
    return f"part-{place}"


def empty_folder(folder: str | os.PathLike) -> Path:
    """
    The place of a folder that is to appear whole.

    Raises:
        `FileExistsError`: Where the folder holds something.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty. Choose a new folder for the recommender.")
    if folder.exists():
        folder.rmdir()
    return folder


def save_part(folder: Path, part: Recommender) -> None:
    """
    Write a recommender into a folder inside that of another one. One that was loaded from a folder is copied as it
    stands there, with its temperature of now; another is saved from memory.

    Raises:
        `ValueError`: Where it is of a kind that its trainer alone can save, and was not loaded from a folder.
    """
    if isinstance(part, COMPOSED):
        part.save(folder)
    elif part.folder is not None:
        _copy(part.folder, folder, part)
    elif isinstance(part, LanguageModelRecommender):
        save_language_model(folder, part)
    elif isinstance(part, Reranker):
        save_recommender(
            folder,
            catalog=part.catalog,
            kind=part.kind,
            prompt=part.prompt,
            scoring=part.form,
            tokenizer=part.tokenizer,
            model=part.model,
            extra=part.order_settings(),
        )
    elif isinstance(part, SequenceRecommender):
        save_recommender(folder, catalog=part.catalog, kind=part.kind, scoring="exact", model=part.model)
    elif isinstance(part, Control):
        save_control(folder, part)
    else:
        raise ValueError(
            f"A {type(part).__name__} is saved by what made it. Save it, load it with load_recommender(folder), and "
            "use that."
        )


def save_language_model(
    folder: str | os.PathLike, recommender: LanguageModelRecommender, model: PreTrainedModel | None = None
) -> None:
    """Save a recommender from memory, with another `model` in place of its own where one is given."""
    save_recommender(
        folder,
        catalog=recommender.catalog,
        kind="language_model",
        prompt=recommender.prompt,
        trie=ItemTrie.build(recommender.prompt.encode_items()),
        tau=recommender.tau,
        scoring=recommender.scoring,
        tokenizer=recommender.tokenizer,
        model=recommender.model if model is None else model,
    )


def _copy(source: Path, folder: Path, part: Recommender) -> None:
    """Copy what a recommender folder lists; models that it names outside of itself are named from the new place."""
    index = read_index(source)
    check_folder(source, index)
    for name in index["files"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    config = folder / "config.json"
    if config.is_file():
        content = json.loads(config.read_bytes())
        moved = {role: moved_name(source, content[role], folder) for role in PLACES[config.name] if content.get(role)}
        config.write_text(json.dumps(content | moved, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if index["base"] is not None and index["base"].get("path"):
        index["base"]["path"] = moved_name(source, index["base"]["path"], folder)
    if isinstance(part, LanguageModelRecommender):
        index |= {"tau": float(part.tau), "scoring": part.scoring}
    if isinstance(part, Reranker):
        index["extra"] = part.order_settings()
    (folder / RECOMMENDER_FILE).write_text(index_text(index), encoding="utf-8")


def moved_name(source: Path, name: str, folder: Path) -> str:
    """What a folder that `source` names has to be called in `folder`; the same where it lies inside, or is none."""
    place = (source / name).resolve()
    if not place.is_dir() or place.is_relative_to(source.resolve()):
        return name
    return os.path.relpath(place, folder)
