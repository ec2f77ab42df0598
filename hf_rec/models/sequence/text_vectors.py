"""
Vectors of the items' text beside their own on the input side of a sequence model (DLLM2Rec,
https://huggingface.co/papers/2405.00338).

Shapes: N items · R rows of the item table · D width of a text vector · d width of an item vector.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TextVectors(nn.Module):
    """
    Fixed text vectors, and a trained projection without bias to the width of the item vectors. Rows that are no item
    (padding, a mask) get zero.

    Args:
        num_rows (`int`): R.
        text_size (`int`): D.
        hidden_size (`int`): d.
    """

    vectors: Tensor

    def __init__(self, num_rows: int, text_size: int, hidden_size: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(num_rows, text_size))
        self.projection = nn.Parameter(torch.zeros(hidden_size, text_size))

    @torch.no_grad()
    def fill(self, vectors: Tensor, seed: int) -> None:
        """Take the vectors `(N, D)` of items 0, 1, ..., and draw the projection as torch draws a linear layer."""
        self.vectors[1 : 1 + len(vectors)] = vectors.to(self.vectors)
        bound = 1 / math.sqrt(self.projection.shape[1])
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.rand(self.projection.shape, generator=generator)
        self.projection.copy_((2 * numbers - 1) * bound)

    def forward(self, rows: Tensor) -> Tensor:
        """Projected text of rows of the item table: `(*rows, d)`."""
        return F.linear(self.vectors[rows], self.projection)
