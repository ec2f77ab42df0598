"""One model of a server: what is loaded now, and how a new one takes its place."""

import os
from pathlib import Path
from threading import Lock

from hf_rec.data.catalog import Catalog
from hf_rec.files import file_sha256
from hf_rec.hub import load_recommender
from hf_rec.hub.files import RECOMMENDER_FILE, read_index
from hf_rec.models.weight_files import local_folder
from hf_rec.recommenders.contract import RawId, Recommender


VERSION_DIGITS = 12


class ItemTitles:
    """
    The items of a catalog, to be found by a part of their titles.

    Args:
        catalog ([`Catalog`]): The items.
    """

    def __init__(self, catalog: Catalog):
        self.catalog = catalog
        self._folded = [catalog.text(row).casefold() for row in range(len(catalog))]

    def find(self, query: str, limit: int) -> list[int]:
        """
        Rows of the items whose title holds every word of the query, or whose id it is: the id first, then titles that
        begin with it, then those in which it stands earliest. All items in row order for an empty query.
        """
        words = query.casefold().split()
        if not words:
            return list(range(min(limit, len(self.catalog))))
        whole = " ".join(words)
        found = [row for row, title in enumerate(self._folded) if all(word in title for word in words)]
        found.sort(key=lambda row: (self._folded[row].find(whole) % 2**31, len(self._folded[row]), row))
        try:
            by_id = [self.catalog.row(query.strip())]
        except ValueError:
            by_id = []
        return [*by_id, *(row for row in found if row not in by_id)][:limit]


class LoadedModel:
    """
    A recommender that answers, and what its answers are labelled with.

    Args:
        recommender ([`Recommender`]): The recommender.
        version (`str`): Tells it from what the same folder holds at another time.
    """

    def __init__(self, recommender: Recommender, version: str):
        self.recommender = recommender
        self.version = version
        self.titles = ItemTitles(recommender.catalog)

    def title(self, item_id: RawId) -> str | None:
        """Title of an item; `None` where it has none."""
        return self.recommender.catalog.title(item_id)


class ServedModel:
    """
    A model under a name. `loaded` changes at once and whole: a request keeps the one that it began with.

    Args:
        name (`str`): What requests call it.
        source (`str` or `os.PathLike`): Folder or repository on the Hub, read again at each reload.
        revision, device, dtype (*optional*): As of [`~hf_rec.hub.load_recommender`].
    """

    def __init__(
        self,
        name: str,
        source: str | os.PathLike,
        revision: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ):
        self.name = name
        self.source = source
        self._revision = revision
        self._options = {"device": device, "dtype": dtype}
        self._reloading = Lock()
        self.loaded = self._load(self._folder())

    def reload(self) -> bool:
        """
        Read the folder again, which may be another one by now (a link that leads elsewhere, a new revision). The one
        in use answers until the new one has answered a first request, and stays where this fails.

        Returns:
            `bool`: Whether it is another model.
        """
        with self._reloading:
            folder = self._folder()
            if _version(folder) == self.loaded.version:
                return False
            self.loaded = self._load(folder)
            return True

    def _folder(self) -> Path:
        """Where the model lies now; a link is followed once, so that all files are read in one place."""
        return local_folder(self.source, self._revision).resolve()

    def _load(self, folder: Path) -> LoadedModel:
        version = _version(folder)
        recommender = load_recommender(folder, **self._options)
        recommender.recommend([[]], k=1)  # sets up what a first call sets up, and shows that it answers
        return LoadedModel(recommender, version)


def _version(folder: Path) -> str:
    """The beginning of the hash of `recommender.json`, which lists the hashes of all else."""
    read_index(folder)  # says what is wrong with a folder that is no recommender
    return file_sha256(folder / RECOMMENDER_FILE)[:VERSION_DIGITS]
