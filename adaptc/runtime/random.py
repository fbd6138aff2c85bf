"""Counter-based random numbers in plain torch: a hash of the seed, the stream, the row and the column.

The same bits on every device, and as `native` gives. The seed stays a tensor: nothing is read back to the host, sizes
may be symbolic, and forward and backward draw the same numbers without keeping them. The hash is the 32-bit "lowbias"
finalizer of Wellons, with a fifth shift, in int64: no product of two factors reaches 2^63.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def uniform(
    seed: Tensor, stream: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    """Multiples of 2^-24 in [0, 1), rounded to dtype."""
    return (_bits(seed, stream, shape, device).to(torch.float32) * 2.0**-24).to(dtype)


def bernoulli(
    seed: Tensor, stream: int, p: float, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    """0 with probability p, else 1; p is taken to 24 bits."""
    return (_bits(seed, stream, shape, device) >= round(p * 2**24)).to(dtype)


def _bits(seed: Tensor, stream: int, shape: tuple[int, ...], device: torch.device | None) -> Tensor:
    """24 random bits for each element, as int64."""
    device = seed.device if device is None else device
    seed = seed.to(device)
    i = torch.arange(shape[0], dtype=torch.int64, device=device)
    j = torch.arange(prod(shape[1:]), dtype=torch.int64, device=device)
    row = _mix((i ^ (seed & MASK)) & MASK)
    row = _mix((row + ((seed >> 32) & MASK)) & MASK)
    row = _mix((row + (stream & MASK)) & MASK)
    col = _mix((j + 0x9E3779B9) & MASK)
    return (_mix(row[:, None] ^ col[None, :]) >> 8).reshape(shape)


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers in which every bit of x reaches every bit of the result."""
    x = x ^ (x >> 16)
    x = x * 0x21F0AAAD & MASK
    x = x ^ (x >> 15)
    x = x * 0x735A2D97 & MASK
    return x ^ (x >> 15)
