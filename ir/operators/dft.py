"""dft(n)."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.ir.build import eye, transform
from adaptc.ir.dims import Dim, Shape, as_dim
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make


class Dft(AbstractOperator):
    """The matrix of torch.fft.fft on columns; symmetric and complex. Only real() makes it real again.

    Shapes: n -> (n, n). apply: the transform of each row of x, in float32 or wider.
    Source: FourierFT, arXiv:2405.03003.
    """

    n: Dim

    @classmethod
    def of(cls, n: Any) -> Expr:
        return cls(as_dim(n))

    def infer(self) -> tuple[Shape, Kind]:
        return (self.n, self.n), "complex"

    def as_matrix(self) -> Expr:
        return transform("fft", eye(self.n), 0)

    def apply(self, x: Expr) -> Expr:
        return transform("fft", x, 1)

    @staticmethod
    def definition(xp: Any, n: int) -> Any:
        i = xp.arange(n, dtype=xp.float64)
        turns = i[:, None] * i[None, :] / n
        return xp.exp(-1j * 2 * xp.pi * turns)

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        return cls(rows) if rows == cols else None
