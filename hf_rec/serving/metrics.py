"""Counts and times of a server, in the text form that Prometheus reads."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate
from threading import Lock


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters and histograms, safe to write to from many threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: dict[str, dict[Labels, float]] = {}
        self._histograms: dict[str, tuple[tuple[float, ...], dict[Labels, list[float]]]] = {}

    def count(self, name: str, **labels: str) -> None:
        """Add one to a counter."""
        with self._lock:
            self._counts.setdefault(name, defaultdict(float))[tuple(labels.items())] += 1

    def observe(self, name: str, value: float, bounds: tuple[float, ...], **labels: str) -> None:
        """Add a value to a histogram with the given upper bounds."""
        with self._lock:
            _, series = self._histograms.setdefault(name, (bounds, {}))
            cells = series.setdefault(tuple(labels.items()), [0.0] * (len(bounds) + 2))  # the last one is the sum
            cells[bisect_left(bounds, value)] += 1
            cells[-1] += value

    def text(self, gauges: Iterable[tuple[str, dict[str, str], float]] = ()) -> str:
        """
        All series.

        Args:
            gauges (iterable of `tuple`): Name, labels and value of what is read off now.
        """
        lines: list[str] = []
        with self._lock:
            for name, counts in self._counts.items():
                lines.append(f"# TYPE {name} counter")
                lines += [f"{name}{_labels(labels)} {value:g}" for labels, value in counts.items()]
            for name, (bounds, series) in self._histograms.items():
                lines.append(f"# TYPE {name} histogram")
                for labels, (*cells, total) in series.items():
                    for bound, below in zip([*map(str, bounds), "+Inf"], accumulate(cells), strict=True):
                        lines.append(f"{name}_bucket{_labels((*labels, ('le', bound)))} {below:g}")
                    lines += [
                        f"{name}_sum{_labels(labels)} {total!r}",
                        f"{name}_count{_labels(labels)} {sum(cells):g}",
                    ]
        for name, values, number in gauges:
            lines += [f"# TYPE {name} gauge", f"{name}{_labels(tuple(values.items()))} {number:g}"]
        return "\n".join([*dict.fromkeys(lines), ""])


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
