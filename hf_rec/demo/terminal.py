"""What the demo shows on the terminal."""

from typing import TYPE_CHECKING, Any

from hf_rec.columns import HISTORY, TARGET


if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console
    from rich.table import Table

    from hf_rec.data.catalog import Catalog

SHOWN_ITEMS = 5


def metric(result: dict[str, Any], name: str) -> dict[str, float]:
    """`"mean"`, `"low"` and `"high"` of e.g. `ndcg@10`, from the content of a `metrics.json`."""
    return result["metrics"][f"{result['protocol']}/{name}"]


def accuracy_table(results: dict[str, dict[str, Any]]) -> "Table":
    """A rich table of the measured models, by the name of their folder."""
    from rich.table import Table

    first = next(iter(results.values()))
    title = f"{first['rows']:,} test rows, {first['items']} films, 95 % intervals over users"
    table = Table(title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    for name in ("NDCG@10", "hit rate@10", "training"):
        table.add_column(name, justify="right", no_wrap=True)
    best = max(results.values(), key=lambda result: metric(result, "ndcg@10")["mean"])
    for result in results.values():
        values = [metric(result, name) for name in ("ndcg@10", "hit_rate@10")]
        cells = [f"{value['mean']:.3f} [dim]{value['low']:.3f}–{value['high']:.3f}[/dim]" for value in values]
        cells.append(f"{result['cost']['seconds']:.0f} s")
        table.add_row(result["name"], *cells, style="bold" if result is best else None)
    return table


def show_users(console: "Console", catalog: "Catalog", recommenders: dict, test: "Dataset") -> None:
    """What each (by name) recommends to three users in the middle of a series, chosen by their history alone."""
    from rich.table import Table
    from rich.text import Text

    for row in _users_in_a_series(catalog, test):
        history, target = test[row][HISTORY], test[row][TARGET]
        ids = [catalog.ids[item] for item in history]
        watched = [catalog.text(item) for item in history[-5:]]
        console.print(Text("\nwatched  " + "\n         ".join(watched) + f"\nthen     {catalog.text(target)}"))
        table = Table("#", *recommenders)
        lists = [recommender.recommend([ids], k=SHOWN_ITEMS, exclude=ids) for recommender in recommenders.values()]
        for place in range(SHOWN_ITEMS):
            titles = [found.item_ids[0][place : place + 1] for found in lists]
            cells = [Text(catalog.text(catalog.row(item[0])) if item else "") for item in titles]
            for cell, item in zip(cells, titles, strict=True):
                if item and catalog.row(item[0]) == target:
                    cell.stylize("bold green")
            table.add_row(str(place + 1), *cells)
        console.print(table)


def _users_in_a_series(catalog: "Catalog", test: "Dataset") -> list[int]:
    """First test rows whose last two films go up a series, go down one, and belong to none."""
    found: dict[str, int] = {}
    for row, history in enumerate(test[HISTORY]):
        before, last = (catalog.attributes[item] for item in history[-2:])
        if before.get("series", -1) == last.get("series", -2):
            kind = "up" if last["part"] > before["part"] else "down"
        else:
            kind = "none" if "series" not in last else "first part"
        found.setdefault(kind, row)
    return [found[kind] for kind in ("up", "down", "none") if kind in found]
