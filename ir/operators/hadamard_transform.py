"""hadamard_transform(n)."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.errors import ShapeError
from adaptc.ir.build import constant, eye, transform
from adaptc.ir.dims import Dim, Shape, as_dim
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make

WRITTEN = 16  # rows of a matrix that is written out


class HadamardTransform(AbstractOperator):
    """Sylvester's matrix of +1 and -1, not normalised.

    Shapes: n, a power of two -> (n, n). apply: the fast Walsh-Hadamard transform of each row of x.
    Raises: ShapeError if n is no power of two.
    """

    n: Dim

    @classmethod
    def of(cls, n: Any) -> Expr:
        return cls(as_dim(n))

    def infer(self) -> tuple[Shape, Kind]:
        if isinstance(self.n, int) and (self.n < 1 or self.n & (self.n - 1)):
            raise ShapeError(f"hadamard_transform needs a power of two, got {self.n}")
        return (self.n, self.n), "real"

    def as_matrix(self) -> Expr:
        if isinstance(self.n, int) and self.n <= WRITTEN:
            signs = [(-1.0) ** (i & j).bit_count() for i in range(self.n) for j in range(self.n)]
            return constant(tuple(signs), self.dims)
        return transform("hadamard", eye(self.n), 0)

    def apply(self, x: Expr) -> Expr:
        return transform("hadamard", x, 1)

    @staticmethod
    def definition(xp: Any, n: int) -> Any:
        H = xp.ones(1, 1, dtype=xp.float64)
        step = xp.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=xp.float64)
        while len(H) < n:
            H = xp.kron(step, H)
        return H

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        return cls(rows) if rows == cols and rows & (rows - 1) == 0 else None
