"""diag(v)."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.ir.build import batched, contract, eye
from adaptc.ir.dims import Shape
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make


class Diag(AbstractOperator):
    """v on the diagonal, zeros elsewhere.

    Shapes: v (..., n) -> (..., n, n). apply: x (m, n) -> x * v.
    """

    v: Expr

    def infer(self) -> tuple[Shape, Kind]:
        return (*self.v.dims, self.v.dims[-1]), self.v.kind

    def as_matrix(self) -> Expr:
        return batched("...i,ij->...ij", self.v, eye(self.v.dims[-1]))

    def apply(self, x: Expr) -> Expr:
        return contract("mk,k->mk", x, self.v)

    @staticmethod
    def definition(xp: Any, v: Any) -> Any:
        return xp.diag_embed(v)

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        return cls(make(rows)) if rows == cols else None
