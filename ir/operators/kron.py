"""kron(A, B)."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.errors import ShapeError
from adaptc.ir.build import batched, contract, reshape
from adaptc.ir.dims import Shape, same_shape, show
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make, divisors


class Kron(AbstractOperator):
    """Kronecker product A ⊗ B, row-major as torch.kron.

    Shapes: A (..., p, q), B (..., s, t) -> (..., p s, q t). apply: x (m, q t) -> (m, p s) by two small products.
    Raises: ShapeError unless both are matrices with equal batch axes. Source: LoKr, arXiv:2309.14859.
    """

    A: Expr
    B: Expr

    def infer(self) -> tuple[Shape, Kind]:
        A, B = self.A.dims, self.B.dims
        if len(A) < 2 or len(B) < 2 or not same_shape(A[:-2], B[:-2]):
            raise ShapeError(f"kron needs two matrices with equal batch axes, got {show(A)} and {show(B)}")
        return (*A[:-2], A[-2] * B[-2], A[-1] * B[-1]), self.A.kind

    def as_matrix(self) -> Expr:
        return reshape(batched("...pq,...st->...psqt", self.A, self.B), self.dims)

    def apply(self, x: Expr) -> Expr:
        m, (q, t) = x.dims[0], (self.A.dims[-1], self.B.dims[-1])
        tiles = reshape(x, (m, q, t))
        return reshape(contract("mqt,pq,st->mps", tiles, self.A, self.B), (m, self.dims[0]))

    @staticmethod
    def definition(xp: Any, A: Any, B: Any) -> Any:
        out = xp.einsum("...pq,...st->...psqt", A, B)
        return out.reshape(*A.shape[:-2], A.shape[-2] * B.shape[-2], A.shape[-1] * B.shape[-1])

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        p, q = rng.choice(divisors(rows)), rng.choice(divisors(cols))
        return cls(make(p, q), make(rows // p, cols // q))
