"""Transforms that torch lacks, as torch operations."""

from __future__ import annotations

import torch


def fft(x: torch.Tensor, dim: int) -> torch.Tensor:
    """torch.fft.fft, for no tokens too, which its libraries refuse."""
    return torch.fft.fft(x, dim=dim) if x.numel() else torch.complex(x, x) if not x.is_complex() else x


def ifft(x: torch.Tensor, dim: int) -> torch.Tensor:
    """torch.fft.ifft, for no tokens too."""
    return torch.fft.ifft(x, dim=dim) if x.numel() else torch.complex(x, x) if not x.is_complex() else x


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
