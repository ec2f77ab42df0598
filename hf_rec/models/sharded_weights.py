"""Whether an engine keeps a model's weights in pieces, one on each process."""

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
