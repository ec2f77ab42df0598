"""A model with its dropout off, for a while."""

from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module):
    """Dropout off, and every module's mode restored after."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
