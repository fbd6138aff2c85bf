"""cayley(X)."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.ir.build import add, broadcast, eye, scale, transpose_last
from adaptc.ir.dims import Shape
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make, square
from adaptc.ir.prims import Solve


class Cayley(AbstractOperator):
    """Cayley transform: with S = (X - X^T) / 2, the rotation (I - S)(I + S)^-1.

    Shapes: X (..., b, b) -> (..., b, b). The two factors commute, so this is one solve. float32 or wider.
    Source: OFT, arXiv:2306.07280; BOFT, arXiv:2311.06243.
    """

    X: Expr

    def infer(self) -> tuple[Shape, Kind]:
        square(self.X, "cayley")
        return self.X.dims, self.X.kind

    def as_matrix(self) -> Expr:
        S = scale(0.5, add(self.X, scale(-1, transpose_last(self.X))))
        b, lead = self.dims[-1], self.dims[:-2]
        I = broadcast(eye(b), self.dims, (len(lead), len(lead) + 1))
        return Solve(add(I, S), add(I, scale(-1, S)))

    @staticmethod
    def definition(xp: Any, X: Any) -> Any:
        S = (X - xp.einsum("...ij->...ji", X)) / 2
        I = xp.eye(X.shape[-1], dtype=X.dtype)
        return (I - S) @ xp.linalg.inv(I + S)

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        return cls(make(rows, cols)) if rows == cols else None
