"""permutation(index)."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.errors import ShapeError
from adaptc.ir.algebra import index_table
from adaptc.ir.build import eye, take
from adaptc.ir.dims import Shape
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make
from adaptc.ir.prims import INDEX, At, Table


class Permutation(AbstractOperator):
    """P with (P @ x)[i] = x[index[i]].

    Shapes: index (n,), an integer leaf or whole numbers -> (n, n). apply: gathers columns of x.
    Raises: ShapeError if written-out numbers are no permutation.
    """

    index: Expr

    @classmethod
    def of(cls, index: Any) -> Expr:
        table = index_table(index, index.dims[0] if isinstance(index, Expr) else len(index))
        if isinstance(table, Table) and sorted(table.values) != list(range(len(table.values))):
            raise ShapeError(f"not a permutation of 0 .. {len(table.values) - 1}: {table.values}")
        return cls(table)

    def infer(self) -> tuple[Shape, Kind]:
        return (self.index.dims[0], self.index.dims[0]), "real"

    def as_matrix(self) -> Expr:
        return take(eye(self.dims[0]), (At(self.index, 0), INDEX[1]), self.dims)

    def apply(self, x: Expr) -> Expr:
        return take(x, (INDEX[0], At(self.index, 1)), x.dims)

    @staticmethod
    def definition(xp: Any, index: Any) -> Any:
        return xp.eye(len(index), dtype=xp.float64)[index]

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        return cls.of(rng.sample(range(rows), rows)) if rows == cols else None
