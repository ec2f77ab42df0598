"""
Adam for tables of which a step touches few rows.

A dense optimizer sweeps the item table and both of its moments each step: at a million items that costs more than the
model. Here a parameter with a sparse gradient has only the rows of that gradient updated.

[`torch.optim.SparseAdam`] does not serve: it takes no dense gradients, has no weight decay, and corrects the bias of a
row's moments by the steps of the whole table, so that the first steps of a rare row come out too small.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class LazyAdam(Optimizer):
    """
    AdamW that leaves rows without a gradient alone.

    Parameters with a dense gradient get AdamW. A row of a parameter with a sparse gradient gets AdamW over the steps
    that touched it: its moments and their bias correction count those steps alone. Its weight decay is made up for
    when it is next touched, as `(1 - lr * weight_decay)` to the power of the steps since. With every row touched in
    every step this is AdamW.

    Args:
        params (iterable): Parameters or parameter groups.
        lr (`float`, *optional*, defaults to `1e-3`): Learning rate.
        betas (`tuple[float, float]`, *optional*, defaults to `(0.9, 0.999)`): Decay of both moments.
        eps (`float`, *optional*, defaults to `1e-8`): Added to the root of the second moment.
        weight_decay (`float`, *optional*, defaults to `0.0`): Decoupled weight decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.int64)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
                    if param.grad.is_sparse:
                        # float32: what load_state_dict would make of integers
                        state["row_steps"] = torch.zeros(len(param), device=param.device)
                        state["last_step"] = torch.zeros(len(param), device=param.device)
                state["step"] += 1
                update = _update_rows if param.grad.is_sparse else _update_all
                update(param, state, group)
        return loss


def _update_all(param: Tensor, state: dict, group: dict) -> None:
    param.mul_(1 - group["lr"] * group["weight_decay"])
    step = state["step"].item()
    param.sub_(_direction(param.grad, state["exp_avg"], state["exp_avg_sq"], step, group))


def _update_rows(param: Tensor, state: dict, group: dict) -> None:
    grad = param.grad.coalesce()
    rows, values = grad.indices()[0], grad.values()
    step = state["step"].item()
    row_steps = state["row_steps"][rows] + 1
    first, second, weights = state["exp_avg"][rows], state["exp_avg_sq"][rows], param[rows]
    if group["weight_decay"]:
        waited = (step - state["last_step"][rows]).to(weights.dtype)
        weights *= ((1 - group["lr"] * group["weight_decay"]) ** waited)[:, None]
    weights -= _direction(values, first, second, row_steps[:, None].to(weights.dtype), group)
    param.index_copy_(0, rows, weights)
    state["exp_avg"].index_copy_(0, rows, first)
    state["exp_avg_sq"].index_copy_(0, rows, second)
    state["row_steps"][rows] = row_steps
    state["last_step"][rows] = step


def _direction(grad: Tensor, first: Tensor, second: Tensor, step: int | Tensor, group: dict) -> Tensor:
    """Adam's step; updates both moments in place."""
    beta1, beta2 = group["betas"]
    first.lerp_(grad, 1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    scale = (1 - beta2**step) ** 0.5
    return group["lr"] / (1 - beta1**step) * first / (second.sqrt() / scale + group["eps"])


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """
    Scale all gradients so that their joint 2-norm is at most `max_norm`; sparse ones count as the dense gradients they
    stand for.

    Returns:
        `torch.Tensor`: The norm before. [`torch.nn.utils.clip_grad_norm_`] does the same for dense gradients alone.
    """
    values = []
    for param in parameters:
        if param.grad is None:
            continue
        if param.grad.is_sparse:
            param.grad = param.grad.coalesce()  # repeated rows add up before their norm is taken
        values.append(param.grad.values() if param.grad.is_sparse else param.grad)
    norm = torch.stack([torch.linalg.vector_norm(value) for value in values]).norm()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for value in values:
        value.mul_(scale)
    return norm
