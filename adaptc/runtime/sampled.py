"""Entries of a product at some places, without the others."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptc.runtime import native

CHUNK = 1 << 20  # entries gathered at a time


def sampled(a: Tensor, rows: Tensor, b: Tensor, cols: Tensor, dtype: torch.dtype) -> Tensor:
    """out[t] = sum over m of a[m, rows[t]] b[m, cols[t]], for a (m, n) and b (m, k), summed in float32 or wider."""
    wide = torch.promote_types(dtype, torch.float32)
    left, right = a.t().contiguous(), b.t().contiguous()
    if native.samples(a, b, rows, cols):
        return native.sampled(left, rows, right, cols).to(dtype)
    step = max(1, CHUNK // max(a.shape[0], 1))
    parts = [
        (left.index_select(0, r).to(wide) * right.index_select(0, c)).sum(1)
        for r, c in zip(torch.split(rows, step), torch.split(cols, step), strict=True)
    ]
    return torch.cat(parts).to(dtype)
