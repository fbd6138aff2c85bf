"""scatter(v, index, shape)."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.errors import ShapeError
from adaptc.ir.algebra import index, index_table, tensor
from adaptc.ir.build import contract, ones, put, take
from adaptc.ir.dims import Shape, as_shape, same_shape, show
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make
from adaptc.ir.prims import INDEX, At


class Scatter(AbstractOperator):
    """Zeros of `shape` plus v[t] at index[:, t] of the leading axes; repeats add up.

    Shapes: index, one vector (t,) of whole numbers per leading axis (or an integer leaf (axes, t)); v (t, *rest),
    or a number -> shape. apply (all axes indexed): gathers columns of x, scales, adds them into columns of y.
    Raises: ShapeError naming v's shape and the wanted one. Source: SHiRA, arXiv:2406.13175.
    """

    v: Expr
    index: tuple[Expr, ...]
    size: Shape

    @classmethod
    def of(cls, v: Any, at: Any, shape: Any) -> Expr:
        size = as_shape(tuple(shape))
        if isinstance(at, Expr):
            at = [index(at, a) for a in range(int(at.dims[0]))]
        tables = tuple(index_table(rows, d) for rows, d in zip(at, size, strict=False))
        if not isinstance(v, Expr):
            v = tensor(v, ones((*tables[0].dims, *size[len(tables) :])))
        return cls(v, tables, size)

    def infer(self) -> tuple[Shape, Kind]:
        for rows in self.index[1:]:
            if not same_shape(rows.dims, self.index[0].dims):
                raise ShapeError(f"scatter: index vectors of {show(self.index[0].dims)} and {show(rows.dims)}")
        wanted = (*self.index[0].dims, *self.size[len(self.index) :])
        if not same_shape(self.v.dims, wanted):
            raise ShapeError(f"scatter: v is {show(self.v.dims)}, the index and shape want {show(wanted)}")
        return self.size, self.v.kind

    def as_matrix(self) -> Expr:
        rest = INDEX[1 : 1 + len(self.size) - len(self.index)]
        return put(self.v, (*(At(t, 0) for t in self.index), *rest), self.size)

    def apply(self, x: Expr) -> Expr:
        if len(self.index) != 2 or len(self.size) != 2:
            return contract("mk,nk->mn", x, self.as_matrix())
        (rows, cols), m, t = self.index, x.dims[0], self.v.dims[0]
        picked = contract("mt,t->mt", take(x, (INDEX[0], At(cols, 1)), (m, t)), self.v)
        return put(picked, (INDEX[0], At(rows, 1)), (m, self.size[0]))

    @staticmethod
    def definition(xp: Any, v: Any, index: tuple[Any, ...], size: tuple[int, ...]) -> Any:
        flat = xp.zeros(index[0].new_tensor(size[: len(index)]).prod().item(), *v.shape[1:], dtype=v.dtype)
        position = 0
        for table, d in zip(index, size, strict=False):
            position = position * d + table
        return flat.index_add(0, position, v).reshape(size)

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        t = rng.randrange(1, rows + cols)
        at = [[rng.randrange(rows) for _ in range(t)], [rng.randrange(cols) for _ in range(t)]]
        if rng.random() < 0.3:
            return cls.of(make(t, cols), at[:1], (rows, cols))
        return cls.of(make(t), at, (rows, cols))
