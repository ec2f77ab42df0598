"""
How far two autoencoders agree on an item, and how well each gives back what it was given.

Shapes: P labelled positions · K items of a position (target first) · d any width.
"""

from torch import Tensor


def squared_error(first: Tensor, second: Tensor) -> Tensor:
    """
    Mean squared error over the entries of a vector, summed over the items of a position.

    Args:
        first, second (`torch.Tensor` of shape `(P, K, d)`): Any float dtype; computed in float32.

    Returns:
        `torch.Tensor` of shape `(P,)`.
    """
    return (first.float() - second.float()).square().mean(dim=2).sum(dim=1)
