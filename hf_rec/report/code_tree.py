"""The tree of item codes as a picture: what share of the items each prefix has, and how evenly codes are used."""

from typing import TYPE_CHECKING

import numpy as np

from hf_rec.report.plots import _COLORS, _GREY, _STYLE, _pyplot


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def code_tree_figure(codes: np.ndarray, name: str) -> "Figure":
    """
    Draw codes.

    Args:
        codes (`np.ndarray` of `int`, shape `(N, L)`): A path an item.
        name (`str`): What the title calls them.

    Returns:
        `matplotlib.figure.Figure`: Above, a row a level, each prefix as wide as its share of the items, the largest
        first, in the colour of its first code; below, the share of the items of each code of a level.
    """
    plt = _pyplot()
    with plt.rc_context(_STYLE):
        figure, (tree, use) = plt.subplots(2, 1, figsize=(7.2, 6.4), layout="constrained")
        _draw_tree(tree, codes[_largest_first(codes)])
        tree.set_title(f"Tree of {name}: {len(codes):,} items")
        for level in range(codes.shape[1]):
            counts = np.sort(np.unique(codes[:, level], return_counts=True)[1])[::-1]
            look = {"color": _COLORS[level % len(_COLORS)], "label": f"level {level + 1}: {len(counts):,} codes"}
            use.plot(np.arange(1, len(counts) + 1), 100 * counts / len(codes), marker="o", ms=2.5, **look)
        use.set(title="Use of codes", xlabel="code, the most used first", ylabel="share of items (%)", ylim=(0, None))
        use.legend()
    return figure


def _largest_first(codes: np.ndarray) -> np.ndarray:
    """Order of the items in which each prefix is a run, and of the prefixes below one the largest comes first."""
    keys: list[np.ndarray] = []
    for level in range(codes.shape[1]):
        _, prefixes, sizes = np.unique(codes[:, : level + 1], axis=0, return_inverse=True, return_counts=True)
        keys += [-sizes[prefixes.reshape(-1)], codes[:, level]]
    return np.lexsort(keys[::-1])


def _draw_tree(axes: "Axes", ordered: np.ndarray) -> None:
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba_array

    num_items, levels = ordered.shape
    groups = np.concatenate([[0], np.cumsum(ordered[1:, 0] != ordered[:-1, 0])])  # which first code an item has
    for level in range(levels):
        new = (ordered[1:, : level + 1] != ordered[:-1, : level + 1]).any(axis=1)
        starts = np.concatenate([[0], np.flatnonzero(new) + 1])
        ends = np.append(starts[1:], num_items)
        low, high = levels - level - 1, levels - level - 0.28
        left, right = 100 * starts / num_items, 100 * ends / num_items
        corners = [(left, low), (left, high), (right, high), (right, low)]
        boxes = np.stack([np.stack([x, np.full(len(x), float(y))], axis=1) for x, y in corners], axis=1)
        colors = to_rgba_array(_COLORS)[groups[starts] % len(_COLORS)]
        colors[:, 3] = np.where(np.arange(len(starts)) % 2, 0.95, 0.55)
        axes.add_collection(PolyCollection(list(boxes), facecolor=colors, linewidth=0))
        text = f"level {level + 1}: {len(starts):,} prefixes, the largest of {(ends - starts).max():,} items"
        axes.text(0, high + 0.03, text, fontsize=8, color=_GREY, va="bottom")
    axes.set(xlim=(0, 100), ylim=(0, levels), xlabel="items, the largest prefix first (%)", yticks=[])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
