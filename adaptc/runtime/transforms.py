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


def half_fft(x: torch.Tensor) -> torch.Tensor:
    """The first columns of fft(x), x (m, k) real: k // 2 + 1 of them."""
    return torch.fft.rfft(x) if x.numel() else torch.complex(x, x)[:, : x.shape[1] // 2 + 1]


def half_ifft(x: torch.Tensor) -> torch.Tensor:
    """The first columns of ifft(x), x (m, k) real."""
    return torch.fft.rfft(x, norm="forward").conj() if x.numel() else half_fft(x)


def real_ifft(x: torch.Tensor, n: int) -> torch.Tensor:
    """The real part of ifft, of the half of what goes in that it takes."""
    return torch.fft.irfft(x, n) if x.numel() else x.real.new_empty(x.shape[0], n)


def real_fft(x: torch.Tensor, n: int) -> torch.Tensor:
    """The real part of fft, of the half of the complex conjugate of what goes in that it takes."""
    return torch.fft.irfft(x, n, norm="forward") if x.numel() else real_ifft(x, n)
