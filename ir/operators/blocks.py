"""blocks(M)."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.errors import ShapeError
from adaptc.ir.build import contract, permute, reshape
from adaptc.ir.dims import Shape, as_dim, show
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make, divisors


class Blocks(AbstractOperator):
    """A matrix of blocks: block (i, j) is M[i, j].

    Shapes: M (p, q, a, b) -> (p a, q b). apply: every slice of x meets its column of blocks.
    """

    M: Expr

    def infer(self) -> tuple[Shape, Kind]:
        if self.M.ndim != 4:
            raise ShapeError(f"blocks needs M (p, q, a, b), got {show(self.M.dims)}")
        p, q, a, b = self.M.dims
        return (as_dim(p * a), as_dim(q * b)), self.M.kind

    def as_matrix(self) -> Expr:
        return reshape(permute(self.M, (0, 2, 1, 3)), self.dims)

    def apply(self, x: Expr) -> Expr:
        m, (_, q, _, b) = x.dims[0], self.M.dims
        return reshape(contract("mqb,pqab->mpa", reshape(x, (m, q, b)), self.M), (m, self.dims[0]))

    @staticmethod
    def definition(xp: Any, M: Any) -> Any:
        p, q, a, b = M.shape
        return xp.einsum("pqab->paqb", M).reshape(p * a, q * b)

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        p, q = rng.choice(divisors(rows)), rng.choice(divisors(cols))
        return cls(make(p, q, rows // p, cols // q))
