"""Many small linear systems, by a kernel of `csrc/`."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptc.runtime.native import BEST, available, threads_for

if available():
    from adaptc import _native


def solve(A: Tensor, B: Tensor, level: int = BEST) -> Tensor:
    """A^-1 B for A (..., n, n) and B (..., n, q), float32. Raises: torch.linalg.LinAlgError where A has no inverse."""
    if A.dtype != torch.float32 or B.dtype != torch.float32 or not B.numel():
        return torch.linalg.solve(A, B)
    n, q = B.shape[-2:]
    a, b = A.reshape(-1, n, n), B.reshape(-1, n, q)
    out = torch.empty(B.shape, dtype=B.dtype)
    sizes, work = (b.shape[0], n, q), b.shape[0] * n * n * (n + q)
    args = a.data_ptr(), a.stride(), b.data_ptr(), b.stride(), out.data_ptr(), sizes, threads_for(work), level
    return out if _native.solve(*args) else torch.linalg.solve(A, B)
