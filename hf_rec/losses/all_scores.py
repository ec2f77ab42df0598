"""
Losses of the scores of all items, for a few positions at a time.

Shapes: P labelled positions · C positions of a chunk · N items · d width of a user vector.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


CPU_CHUNK_ELEMENTS = 2**20  # scores held at once: 4 MiB, which stay in a core's cache
ACCELERATOR_CHUNK_ELEMENTS = 2**27

# (scores [C, N], buffer [C, N], what belongs to the positions) -> summed loss, gradient [C, N]. Both tensors may be
# written into, and the gradient may be either of them.
ScoreLoss = Callable[..., tuple[Tensor, Tensor]]


def loss_of_all_scores(
    vectors: Tensor,
    items: Tensor,
    bias: Tensor | None,
    score_loss: ScoreLoss,
    of_positions: tuple[Tensor, ...] = (),
    chunk_size: int | None = None,
) -> Tensor:
    """
    Sum over positions of a loss of the scores of all items.

    The gradient is computed in the forward pass, chunk by chunk, so that no score is ever computed twice or kept.

    Args:
        vectors (`torch.Tensor` of shape `(P, d)`): User vectors at the labelled positions.
        items (`torch.Tensor` of shape `(N, d)`): Item vectors; a score is their dot product.
        bias (`torch.Tensor` of shape `(N,)`, *optional*): Added to the scores of every position.
        score_loss (`Callable`): `(scores, buffer, *of_positions) -> (loss, gradient)` for the positions of a chunk:
            the float32 scores `(C, N)`, a second tensor of that shape to work in, and the rows of `of_positions`.
            Called without gradients.
        of_positions (`tuple` of `torch.Tensor` of shape `(P, ...)`, *optional*): Targets and the like.
        chunk_size (`int`, *optional*): Positions scored at a time. Default: about 4 MiB of scores on a CPU (what a
            core's cache holds), 512 MiB on an accelerator.

    Returns:
        `torch.Tensor`: A scalar, float32.
    """
    if chunk_size is None:
        elements = CPU_CHUNK_ELEMENTS if vectors.device.type == "cpu" else ACCELERATOR_CHUNK_ELEMENTS
        chunk_size = max(elements // max(len(items), 1), 16)
    vectors, items = in_autocast_dtype(vectors, items)
    return _AllScores.apply(vectors, items, bias, score_loss, chunk_size, *of_positions)


class _AllScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        items: Tensor,
        bias: Tensor | None,
        score_loss: ScoreLoss,
        chunk_size: int,
        *of_positions: Tensor,
    ) -> Tensor:
        ctx.num_inputs = 5 + len(of_positions)
        needs_vectors, needs_items, needs_bias = ctx.needs_input_grad[:3]
        vectors_grad = torch.empty_like(vectors) if needs_vectors else None
        # Transposed: a CPU multiplies [d, P] x [P, N] faster than [N, P] x [P, d]
        items_grad = vectors.new_zeros(items.shape[::-1], dtype=torch.float32) if needs_items else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        total = vectors.new_zeros((), dtype=torch.float32)
        with torch.autocast(vectors.device.type, enabled=False):
            buffers = vectors.new_empty((2, min(chunk_size, len(vectors)), len(items)), dtype=torch.float32)
            for rows in (slice(start, start + chunk_size) for start in range(0, len(vectors), chunk_size)):
                part = vectors[rows]
                scores, buffer = buffers[0, : len(part)], buffers[1, : len(part)]
                if part.dtype == torch.float32:
                    torch.mm(part, items.t(), out=scores)
                else:
                    scores.copy_(part @ items.t())
                if bias is not None:
                    scores += bias
                loss, grad = score_loss(scores, buffer, *(values[rows] for values in of_positions))
                total += loss
                if not (needs_vectors or needs_items or needs_bias):
                    continue
                if bias_grad is not None:
                    bias_grad += grad.sum(dim=0)
                grad = grad.to(vectors.dtype)
                if vectors_grad is not None:
                    torch.mm(grad, items, out=vectors_grad[rows])
                if items_grad is not None and grad.dtype == torch.float32:
                    items_grad.addmm_(part.t(), grad)
                elif items_grad is not None:
                    items_grad += part.t() @ grad
        ctx.save_for_backward(
            vectors_grad,
            None if items_grad is None else items_grad.t().to(items.dtype),
            None if bias is None or bias_grad is None else bias_grad.to(bias.dtype),
        )
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grads = [None if grad is None else grad * grad_output.to(grad.dtype) for grad in ctx.saved_tensors]
        return *grads, *[None] * (ctx.num_inputs - len(grads))


def in_autocast_dtype(vectors: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype that a matrix product would run in here."""
    if torch.is_autocast_enabled(vectors.device.type):
        vectors = vectors.to(torch.get_autocast_dtype(vectors.device.type))
    return vectors, items.to(vectors.dtype)
