"""identity(n)."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.ir.build import eye
from adaptc.ir.dims import Dim, Shape, as_dim
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make


class Identity(AbstractOperator):
    """The identity matrix. Shapes: n -> (n, n). apply: x itself."""

    n: Dim

    @classmethod
    def of(cls, n: Any) -> Expr:
        return cls(as_dim(n))

    def infer(self) -> tuple[Shape, Kind]:
        return (self.n, self.n), "real"

    def as_matrix(self) -> Expr:
        return eye(self.n)

    def apply(self, x: Expr) -> Expr:
        return x

    @staticmethod
    def definition(xp: Any, n: int) -> Any:
        return xp.eye(n, dtype=xp.float64)

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        return cls(rows) if rows == cols else None
