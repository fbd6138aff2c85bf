"""Products with sparse matrices: by the compiled kernels where these take them, else by torch."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptc.runtime import native, sparse
from adaptc.runtime.sparse import Half


def sampled(
    a: Tensor, rows: Tensor, b: Tensor, cols: Tensor, dtype: torch.dtype, halves: tuple[Half, Half] = (None, None)
) -> Tensor:
    """As `sparse.sampled`."""
    if dtype.is_complex:
        return sparse.sampled_complex(a.to(dtype), rows, b.to(dtype), cols, halves, sampled)
    if native.samples(a, b, rows, cols):
        return native.sampled(a, rows, b, cols).to(dtype)
    return sparse.sampled(a, rows, b, cols, dtype)


def scattered(
    x: Tensor,
    cols: Tensor,
    c: Tensor,
    rows: Tensor,
    n: int,
    dtype: torch.dtype,
    half: Half = None,
    onto: str | None = None,
) -> Tensor:
    """As `sparse.scattered`."""
    if x.is_complex() and not c.is_complex():
        return sparse.scattered_complex(x, cols, c, rows, n, half, onto, scattered)
    if dtype == x.dtype and native.samples(x, x, rows, cols):
        return native.scattered(x, cols, c.to(torch.float32), rows, n)
    return sparse.scattered(x, cols, c, rows, n, dtype)
