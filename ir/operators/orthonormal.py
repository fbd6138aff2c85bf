"""orthonormal(P)."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.errors import ShapeError
from adaptc.ir.build import batched, transpose_last
from adaptc.ir.dims import Shape, show
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make
from adaptc.ir.prims import Cholesky, Solve


class Orthonormal(AbstractOperator):
    """Q of P = Q R with a positive diagonal of R: orthonormal columns that span those of P.

    Shapes: P (..., n, r), n >= r, of full column rank -> (..., n, r). Computed as P R^-1 with R^T the Cholesky
    factor of P^T P, in float32 or wider: its error grows with the square of P's condition number.
    """

    P: Expr

    def infer(self) -> tuple[Shape, Kind]:
        s = self.P.dims
        if len(s) < 2 or (isinstance(s[-1], int) and isinstance(s[-2], int) and s[-1] > s[-2]):
            raise ShapeError(f"orthonormal needs at least as many rows as columns, got {show(s)}")
        return s, self.P.kind

    def as_matrix(self) -> Expr:
        L = Cholesky(batched("...ni,...nj->...ij", self.P, self.P))
        return transpose_last(Solve(L, transpose_last(self.P)))

    @staticmethod
    def definition(xp: Any, P: Any) -> Any:
        Q, R = xp.linalg.qr(P)
        return Q * xp.sign(xp.einsum("...ii->...i", R))[..., None, :]

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        return cls(make(rows, cols, nonzero=True)) if rows >= cols else None
