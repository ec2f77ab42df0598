"""
Rows of all processes, with gradients.

`torch.distributed.nn.all_gather` is deprecated from torch 2.13 on, and its backward pass exchanges gradients that each
process has already.
"""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, accelerator: Accelerator) -> Tensor:
        ctx.start, ctx.size = accelerator.process_index * len(rows), len(rows)
        ctx.num_processes = accelerator.num_processes
        return accelerator.gather(rows.contiguous())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Every process computes the whole loss, and each gives its own rows' part of the gradient. DDP takes the mean
        # over processes of these parts where their sum is wanted.
        return gradient[ctx.start : ctx.start + ctx.size] * ctx.num_processes, None


def gather_rows(rows: Tensor, accelerator: Accelerator) -> Tensor:
    """
    The rows of all processes, in the order of their ranks, for a loss that couples rows.

    Each process must go on to compute the same loss from the result, and DDP (or the like) must average gradients; the
    step is then that of one process with all rows.

    Args:
        rows (`torch.Tensor` of shape `(B, ...)`): Of this process; as many in each.
        accelerator (`accelerate.Accelerator`): Knows the processes.

    Returns:
        `torch.Tensor` of shape `(processes * B, ...)`; `rows` itself in a single process.
    """
    return rows if accelerator.num_processes == 1 else _GatherRows.apply(rows, accelerator)
