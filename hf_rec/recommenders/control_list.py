"""The controls by the names that commands and tables have for them. Light, as `hf-rec --help` lists them."""

from typing import TYPE_CHECKING, NamedTuple


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_rec.data.catalog import Catalog
    from hf_rec.recommenders.controls import Control


class ControlEntry(NamedTuple):
    """A control: its name in tables, its class in `hf_rec.recommenders.controls`, whether it counts a window alone."""

    label: str
    class_name: str
    windowed: bool = False


CONTROLS = {
    "popularity": ControlEntry("popularity", "PopularityRecommender"),
    "recent": ControlEntry("recent popularity", "PopularityRecommender", windowed=True),
    "last-item": ControlEntry("last-item neighbour", "LastItemRecommender"),
}


def make_control(name: str, catalog: "Catalog", rows: "Dataset", window: int | None = None) -> "Control":
    """
    A control made from training rows.

    Args:
        name (`str`): One of [`CONTROLS`].
        catalog ([`~hf_rec.data.catalog.Catalog`]), rows (`datasets.Dataset`): Items and split rows.
        window (`int`, *optional*): Newest rows that a windowed control counts; a tenth of them by default.
    """
    from hf_rec.recommenders import controls

    if name not in CONTROLS:
        raise ValueError(f"`name` must be one of {', '.join(CONTROLS)}, got {name!r}.")
    entry = CONTROLS[name]
    make = getattr(controls, entry.class_name)
    if not entry.windowed:
        if window is not None:
            raise ValueError(f"`window` is {window}, but the control {name!r} counts all rows. Leave it out.")
        return make(catalog, rows)
    return make(catalog, rows, window=max(len(rows) // 10, 1) if window is None else window)
