"""skew(v)."""

from __future__ import annotations

import functools
import math
from random import Random
from typing import Any

import sympy

from adaptc.errors import ShapeError
from adaptc.ir.build import batched, constant, take
from adaptc.ir.dims import Dim, Shape, show
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make
from adaptc.ir.prims import INDEX


@functools.cache  # SymPy takes its time
def _position(lead: int, b: int) -> sympy.Expr:
    """Where the entry (i, j), or its mirror image, stands in the upper triangle; anywhere on the diagonal."""
    i, j = INDEX[lead], INDEX[lead + 1]
    low, high = sympy.Min(i, j), sympy.Max(i, j)
    at = sympy.Max(low * b - low * (low + 1) / 2 + high - low - 1, 0)
    return sympy.Min(at, b * (b - 1) // 2 - 1)  # the diagonal is masked by the sign


class Skew(AbstractOperator):
    """The skew-symmetric matrix whose upper triangle is v, row by row.

    Shapes: v (..., b (b-1) / 2) -> (..., b, b). Raises: ShapeError if the length is no such number.
    """

    v: Expr

    def infer(self) -> tuple[Shape, Kind]:
        b = self._order()
        return (*self.v.dims[:-1], b, b), self.v.kind

    def _order(self) -> int:
        t: Dim = self.v.dims[-1]
        b = (1 + math.isqrt(1 + 8 * t)) // 2 if isinstance(t, int) else 0
        if b * (b - 1) != 2 * t:
            raise ShapeError(f"skew needs b (b-1) / 2 entries for a whole b, got {show(self.v.dims)}")
        return b

    def as_matrix(self) -> Expr:
        lead, b = self.v.dims[:-1], self._order()
        full = take(self.v, (*INDEX[: len(lead)], _position(len(lead), b)), self.dims) if b > 1 else None
        sign = constant(sympy.sign(INDEX[1] - INDEX[0]), (b, b))
        return batched("...ij,ij->...ij", full, sign) if full is not None else constant(0, self.dims)

    @staticmethod
    def definition(xp: Any, v: Any) -> Any:
        b = (1 + math.isqrt(1 + 8 * v.shape[-1])) // 2
        S = xp.zeros(*v.shape[:-1], b, b, dtype=v.dtype)
        rows, cols = xp.triu_indices(b, b, 1)
        S[..., rows, cols] = v
        return S - xp.einsum("...ij->...ji", S)

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        return cls(make(rows * (rows - 1) // 2)) if rows == cols and rows > 1 else None
