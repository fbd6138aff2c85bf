"""inverse(M)."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.ir.build import add, broadcast, eye, scale
from adaptc.ir.dims import Shape
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make, square
from adaptc.ir.prims import Solve


class Inverse(AbstractOperator):
    """The matrix inverse, by a solve in float32 or wider. Shapes: M (..., n, n) -> (..., n, n)."""

    M: Expr

    def infer(self) -> tuple[Shape, Kind]:
        square(self.M, "inverse")
        return self.M.dims, self.M.kind

    def as_matrix(self) -> Expr:
        lead = self.M.ndim - 2
        return Solve(self.M, broadcast(eye(self.dims[-1]), self.dims, (lead, lead + 1)))

    @staticmethod
    def definition(xp: Any, M: Any) -> Any:
        return xp.linalg.inv(M)

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        if rows != cols:
            return None  # n I + M with entries of M below 1 in size is far from singular
        return cls(add(scale(4 * rows, eye(rows)), make(rows, cols)))
