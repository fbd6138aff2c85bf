"""real(E)."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.ir.algebra import matmul, transpose
from adaptc.ir.build import contract, real
from adaptc.ir.dims import Shape
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make
from adaptc.ir.operators.dft import Dft


class Real(AbstractOperator):
    """The real part of a complex matrix.

    Shapes: E (..., p, q) -> (..., p, q). apply: x real, so x Re(E)^T = Re(x E^T), with E's own structure.
    """

    E: Expr

    def infer(self) -> tuple[Shape, Kind]:
        return self.E.dims, "real"

    def as_matrix(self) -> Expr:
        return real(self.E)

    def apply(self, x: Expr) -> Expr:
        if x.kind == "complex":
            return contract("mk,nk->mn", x, self.as_matrix())
        return real(matmul(x, transpose(self.E)))

    @staticmethod
    def definition(xp: Any, E: Any) -> Any:
        return xp.real(E)

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        return cls(matmul(Dft(rows), make(rows, cols)))
