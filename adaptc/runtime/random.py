"""Random numbers by counter: an entry depends on the seed, the stream, its row and its place in the row alone.

32-bit arithmetic in int64 tensors, so that every device and every compiled kernel draws the same bits. The seed stays
a tensor: nothing waits for it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
STEPS = 2**24  # a uniform number is a multiple of 1 / STEPS


def uniform(seed: Tensor, stream: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Numbers on [0, 1), exact in float32. seed: one int64. Rows are the first axis."""
    return (_bits(seed, stream, shape).to(torch.float64 if dtype == torch.float64 else torch.float32) / STEPS).to(dtype)


def bernoulli(seed: Tensor, stream: int, p: float, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """0 with probability p, to the nearest 1 / STEPS, else 1."""
    return (_bits(seed, stream, shape) >= round(p * STEPS)).to(dtype)


def _bits(seed: Tensor, stream: int, shape: tuple[int, ...]) -> Tensor:
    """24 random bits an entry."""
    rows, places = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    row, place = (torch.arange(d, device=seed.device, dtype=torch.int64) for d in (rows, places))
    low, high = seed & MASK, (seed >> 32) & MASK
    row = _mix((_mix((_mix((row & MASK) ^ low) + high) & MASK) + stream) & MASK)
    place = _mix((place + 0x9E3779B9) & MASK)
    return (_mix(row[:, None] ^ place[None, :]) >> 8).reshape(shape)


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers in which every bit depends on every other."""
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & MASK
    x = ((x ^ (x >> 15)) * 0x735A2D97) & MASK
    return x ^ (x >> 15)
