"""Transforms that torch lacks, as torch operations."""

from __future__ import annotations

import torch


def walsh_hadamard(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The product with Sylvester's matrix along one axis, in log2(n) passes."""
    n = x.shape[dim]
    y = x.movedim(dim, -1)
    lead, width = y.shape[:-1], 1
    while width < n:
        a, b = y.reshape(*lead, n // (2 * width), 2, width).unbind(-2)
        y = torch.stack((a + b, a - b), -2).reshape(*lead, n)
        width *= 2
    return y.movedim(-1, dim)
