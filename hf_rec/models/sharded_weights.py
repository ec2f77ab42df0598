"""Weights that an engine keeps in pieces, one on each process: whether a model has such, and how to write them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


def has_sharded_weights(model: nn.Module) -> bool:
    """
    Whether calling a layer of `model` makes all processes gather its weights, as under FSDP and ZeRO-3.

    Processes that call such a model must call it equally often: one that calls it once more waits for the others for
    ever. ZeRO-1 and ZeRO-2 keep whole weights.
    """
    if any(hasattr(param, "ds_id") for param in model.parameters()):  # set by DeepSpeed where it partitions weights
        return True
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    return any(isinstance(module, FSDPModule | FullyShardedDataParallel) for module in model.modules())


@contextmanager
def written_whole(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """
    Within this context each process has the whole of some weights that ZeRO-3 keeps in pieces. What the first process
    has written into them holds for all afterwards. All processes must enter it.
    """
    pieces = [weight for weight in weights if hasattr(weight, "ds_id")]
    if not pieces:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(pieces, modifier_rank=0):
        yield
