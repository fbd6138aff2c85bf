"""toeplitz(t, (n, k))."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.errors import ShapeError
from adaptc.ir.build import take
from adaptc.ir.dims import Dim, Shape, as_shape, same, show
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make
from adaptc.ir.prims import INDEX


class Toeplitz(AbstractOperator):
    """T[i, j] = t[i - j + k - 1].

    Shapes: t (n + k - 1,) -> (n, k). Raises: ShapeError naming both lengths. Source: SURM, arXiv:2406.17740.
    """

    t: Expr
    size: tuple[Dim, Dim]

    @classmethod
    def of(cls, t: Expr, shape: Any) -> Expr:
        n, k = as_shape(tuple(shape))
        return cls(t, (n, k))

    def infer(self) -> tuple[Shape, Kind]:
        n, k = self.size
        if self.t.ndim != 1 or not same(self.t.dims[0], n + k - 1):
            raise ShapeError(f"toeplitz of shape {show(self.size)} needs {n + k - 1} entries, got {show(self.t.dims)}")
        return self.size, self.t.kind

    def as_matrix(self) -> Expr:
        return take(self.t, (INDEX[0] - INDEX[1] + self.size[1] - 1,), self.size)

    @staticmethod
    def definition(xp: Any, t: Any, size: tuple[int, int]) -> Any:
        n, k = size
        return t[xp.arange(n)[:, None] - xp.arange(k)[None, :] + k - 1]

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        return cls(make(rows + cols - 1), (rows, cols))
