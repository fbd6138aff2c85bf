"""Products with sparse matrices as torch operations; those of complex numbers as pairs of real ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 1 << 20  # entries gathered at a time
Half = int | None
"""Of how many columns a tensor is the first half, the others being conjugates of these; None: it has all."""
Real = Callable[..., Tensor]
"""The same product of real numbers."""


def sampled(
    a: Tensor, rows: Tensor, b: Tensor, cols: Tensor, dtype: torch.dtype, halves: tuple[Half, Half] = (None, None)
) -> Tensor:
    """out[t] = sum over m of a[m, rows[t]] b[m, cols[t]], for a (m, n) and b (m, k), summed in float32 or wider."""
    if dtype.is_complex:
        return sampled_complex(a.to(dtype), rows, b.to(dtype), cols, halves, sampled)
    wide = torch.promote_types(dtype, torch.float32)
    left, right = a.t().contiguous(), b.t().contiguous()
    step = max(1, CHUNK // max(a.shape[0], 1))
    parts = [
        (left.index_select(0, r).to(wide) * right.index_select(0, c)).sum(1)
        for r, c in zip(torch.split(rows, step), torch.split(cols, step), strict=True)
    ]
    return torch.cat(parts).to(dtype)


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
    """out (m, n) with out[:, rows[t]] += c[t] x[:, cols[t]] for all t, summed in float32 or wider.

    onto: of a complex result only the half that the real part of its "fft" (then its conjugate) or "ifft" takes.
    """
    if x.is_complex() and not c.is_complex():
        return scattered_complex(x, cols, c, rows, n, half, onto, scattered)
    wide = torch.promote_types(dtype, torch.float32)
    picked = x.gather(1, cols.expand(x.shape[0], -1)).to(wide) * c
    return picked.new_zeros((x.shape[0], n)).index_add_(1, rows, picked).to(dtype)


def sampled_complex(a: Tensor, rows: Tensor, b: Tensor, cols: Tensor, halves: tuple[Half, Half], real: Real) -> Tensor:
    """(p + i q)(r + i s) = p r - q s + i (p s + q r), each a sum of real products; conjugates turn signs."""
    (x, at, one), (y, by, two) = _columns(a, rows, halves[0]), _columns(b, cols, halves[1])
    left, right = torch.cat([at, at + 1] * 2), torch.cat([by, by + 1, by + 1, by])
    pr, qs, ps, qr = torch.chunk(real(x, left, y, right, x.dtype), 4)
    return torch.complex(pr - one * two * qs, two * ps + one * qr)


def scattered_complex(
    x: Tensor, cols: Tensor, c: Tensor, rows: Tensor, n: int, half: Half, onto: str | None, real: Real
) -> Tensor:
    """A scatter of complex columns, and of the pairs that they are."""
    pairs, at, sign = _columns(x, cols, half)
    if onto is not None:  # the real part of a transform is that of what goes in and its mirrored conjugate, halved
        rows, mirrored = _mirrored(rows, n)
        sign = sign * (mirrored if onto == "ifft" else -mirrored)
        c = torch.where((rows == 0) | (2 * rows == n), c, c / 2)
        n = n // 2 + 1
    places = [torch.stack((2 * t, 2 * t + 1), 1).reshape(-1) for t in (at // 2, rows)]
    weights = torch.stack((c, c * sign), 1).reshape(-1).to(pairs.dtype)
    found = real(pairs, places[0], weights, places[1], 2 * n, pairs.dtype)
    return torch.view_as_complex(found.reshape(-1, n, 2))


def _columns(x: Tensor, at: Tensor, half: Half) -> tuple[Tensor, Tensor, Tensor]:
    """Complex columns as pairs of real ones: (m, 2 n), where the first of each is, and the sign of the second."""
    conjugate = x.is_conj()
    pairs = torch.view_as_real((x.conj() if conjugate else x).contiguous()).reshape(x.shape[0], 2 * x.shape[1])
    if half is None:
        sign = torch.ones((), dtype=pairs.dtype, device=x.device)
    else:
        at, sign = _mirrored(at, half)
    return pairs, 2 * at, -sign if conjugate else sign


def _mirrored(at: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Places in the first half of n columns, and -1 where the conjugate of what stands there is meant."""
    beyond = 2 * at > n
    return torch.where(beyond, n - at, at), 1.0 - 2.0 * beyond
