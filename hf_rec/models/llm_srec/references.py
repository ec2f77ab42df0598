"""
References to weights that stay where they are: a folder or Hub id, a revision, and a hash of the weight files.

A model that keeps another one frozen saves such a reference in place of a copy, and refuses other weights when it is
loaded.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from hf_rec.models.weight_files import local_folder, weights_sha256


@dataclass(frozen=True)
class WeightsReference:
    """
    Where the weights of a model are.

    Attributes:
        name (`str`): Folder, or id of a Hub repository.
        revision (`str` or `None`): Commit of the repository; `None` for a folder.
        sha256 (`str`): Hash of the weight files.
    """

    name: str
    revision: str | None
    sha256: str

    @classmethod
    def of(cls, name: str | os.PathLike, revision: str | None = None) -> "WeightsReference":
        """The reference to what `name` holds now."""
        folder = local_folder(name, revision)
        # A snapshot of a Hub repository lies in a folder named after its commit
        commit = None if Path(name).is_dir() else folder.name
        return cls(os.fspath(name), commit, weights_sha256(folder))

    def folder(self, beside: str | os.PathLike | None = None, check: bool = True) -> Path:
        """
        The folder that holds the weights, downloaded if need be.

        Args:
            beside (`str` or `os.PathLike`, *optional*): Folder that a relative `name` is relative to, if it holds one.
            check (`bool`, *optional*, defaults to `True`): Refuse weights whose hash is another one.
        """
        places = [Path(self.name)] if beside is None else [Path(beside) / self.name, Path(self.name)]
        found_here = next((place for place in places if place.is_dir()), None)
        if found_here is None and self.revision is None:  # a folder, which is not asked of the Hub
            raise FileNotFoundError(f"there is no such folder, neither here nor in {beside}.")
        name = self.name if found_here is None else found_here
        folder = local_folder(name, self.revision)
        if check and (found := weights_sha256(folder)) != self.sha256:
            raise ValueError(
                f"The weights in {name} are not those that were trained with (their hash is {found[:12]}, expected "
                f"{self.sha256[:12]}). Put the original ones back, or train again with these."
            )
        return folder
