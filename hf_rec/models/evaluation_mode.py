"""A model with its dropout off, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from weakref import WeakKeyDictionary

from torch import nn


class _Hold:
    """Who keeps a model in evaluation mode: how many, and which modules to put back after the last of them."""

    def __init__(self) -> None:
        self.count = 0
        self.training: list[nn.Module] = []


_HOLDS: "WeakKeyDictionary[nn.Module, _Hold]" = WeakKeyDictionary()
_LOCK = Lock()  # held while modes change, never while the model runs


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """
    Dropout off, and every module's mode restored after.

    Contexts of one model may overlap in any order, in one thread or in many: modes change at the first entry and at
    the last exit.
    """
    with _LOCK:
        hold = _HOLDS.setdefault(model, _Hold())
        if hold.count == 0:
            hold.training = [module for module in model.modules() if module.training]
            model.eval()
        hold.count += 1
    try:
        yield
    finally:
        with _LOCK:
            hold.count -= 1
            if hold.count == 0:
                for module in hold.training:
                    module.training = True
                hold.training = []
