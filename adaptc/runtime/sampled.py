"""Products with sparse matrices: at some places, and of token rows."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptc.runtime import native

CHUNK = 1 << 20  # entries gathered at a time


def sampled(a: Tensor, rows: Tensor, b: Tensor, cols: Tensor, dtype: torch.dtype) -> Tensor:
    """out[t] = sum over m of a[m, rows[t]] b[m, cols[t]], for a (m, n) and b (m, k), summed in float32 or wider."""
    wide = torch.promote_types(dtype, torch.float32)
    if native.samples(a, b, rows, cols):
        return native.sampled(a, rows, b, cols).to(dtype)
    left, right = a.t().contiguous(), b.t().contiguous()
    step = max(1, CHUNK // max(a.shape[0], 1))
    parts = [
        (left.index_select(0, r).to(wide) * right.index_select(0, c)).sum(1)
        for r, c in zip(torch.split(rows, step), torch.split(cols, step), strict=True)
    ]
    return torch.cat(parts).to(dtype)


def scattered(x: Tensor, cols: Tensor, c: Tensor, rows: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """out (m, n) with out[:, rows[t]] += c[t] x[:, cols[t]] for all t, summed in float32 or wider."""
    if dtype == x.dtype and native.samples(x, x, rows, cols):
        return native.scattered(x, cols, c.to(torch.float32), rows, n)
    wide = torch.promote_types(dtype, torch.float32)
    picked = x.gather(1, cols.expand(x.shape[0], -1)).to(wide) * c
    return picked.new_zeros((x.shape[0], n)).index_add_(1, rows, picked).to(dtype)
