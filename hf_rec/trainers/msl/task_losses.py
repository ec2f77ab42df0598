"""The loss of each task apart, between two logs."""

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_rec.data.prompts.item_tasks import TASKS


class TaskLosses:
    """
    Sums the losses of the labels of each task; nothing is read back from the device before a log.

    Args:
        device (`torch.device`): Where the sums live.
    """

    def __init__(self, device: torch.device):
        self._sums = torch.zeros(2, len(TASKS), device=device)  # of losses, and of labels

    def add(self, losses: Tensor, tasks: Tensor) -> None:
        """
        Args:
            losses (`torch.Tensor` of shape `(N,)`): Of the labels of a micro-batch.
            tasks (`torch.LongTensor` of shape `(N,)`): Number of the task of each.
        """
        losses = losses.detach().float()
        self._sums.index_add_(1, tasks, torch.stack([losses, torch.ones_like(losses)]))

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """`loss/<task>`: mean over the labels of all processes since the last call, of the tasks that had any."""
        totals, counts = accelerator.reduce(self._sums, reduction="sum").tolist()
        self._sums = torch.zeros_like(self._sums)
        return {
            f"loss/{name}": total / count for name, total, count in zip(TASKS, totals, counts, strict=True) if count
        }
