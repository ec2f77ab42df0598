"""Counts what would make a GPU wait: places where values, or shapes that depend on values, go to the host."""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode


# Operations whose result, or its shape, the host must know before it goes on
_WAITING = {
    "aten._local_scalar_dense",
    "aten.nonzero",
    "aten.masked_select",
    "aten._unique2",
    "aten.unique_dim",
    "aten.unique_consecutive",
    "aten.equal",
}


class _Waiting(TorchDispatchMode):
    def __init__(self, places: Counter[str]):
        super().__init__()
        self.places = places

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = ".".join(str(func).split(".")[:2])
        masks = name in ("aten.index", "aten.index_put", "aten.index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        # repeat_interleave must count, unless it is told the sum
        counts = name == "aten.repeat_interleave" and kwargs.get("output_size") is None
        if name in _WAITING or masks or counts:
            self.places[f"{name} {_caller()}"] += 1
        return func(*args, **kwargs)


@contextmanager
def host_reads() -> Iterator[Counter[str]]:
    """
    Within this context the counter fills with `operation place` of each read.

    Of operations inside the backward pass only those that Python sees are counted.
    """
    places: Counter[str] = Counter()

    def watched(name: str) -> Any:
        original = getattr(torch.Tensor, name)

        def read(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            places[f"{name} {_caller()}"] += 1
            return original(self, *args, **kwargs)

        return mock.patch.object(torch.Tensor, name, read)

    # On the CPU these are no operations; from a GPU they copy
    with watched("tolist"), watched("numpy"), watched("cpu"), _Waiting(places):
        yield places


def _caller() -> str:
    """File and line outside torch and this file that asked."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and frame.filename not in (__file__, mock.__file__):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return "?"
