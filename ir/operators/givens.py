"""givens(i, j, theta, k)."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.errors import ShapeError
from adaptc.ir.algebra import elementwise, index_table
from adaptc.ir.build import add, contract, eye, ones, put, reshape, scale, take, transpose_last
from adaptc.ir.dims import Dim, Shape, as_dim, same_shape, show
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make
from adaptc.ir.prims import INDEX, At, Table


class Givens(AbstractOperator):
    """The identity but for disjoint planes (i, j), which it turns: [[cos, -sin], [sin, cos]].

    Shapes: i, j (t,) whole numbers, theta (t,) radians -> (k, k); a lone plane may be written with numbers.
    Raises: ShapeError if an index appears twice. Source: qGOFT, arXiv:2404.04316.
    """

    i: Expr
    j: Expr
    theta: Expr
    k: Dim

    @classmethod
    def of(cls, i: Any, j: Any, theta: Expr, k: Any) -> Expr:
        size = as_dim(k)
        i, j = ([v] if isinstance(v, int) else v for v in (i, j))
        p, q = index_table(i, size), index_table(j, size)
        if isinstance(p, Table) and isinstance(q, Table):
            both = p.values + q.values
            if len(set(both)) != len(both):
                raise ShapeError(f"givens: planes must be disjoint, got i = {p.values} and j = {q.values}")
        return cls(p, q, reshape(theta, (1,)) if not theta.ndim else theta, size)

    def infer(self) -> tuple[Shape, Kind]:
        if not (same_shape(self.i.dims, self.j.dims) and same_shape(self.i.dims, self.theta.dims)):
            raise ShapeError(f"givens: i is {show(self.i.dims)}, j {show(self.j.dims)}, theta {show(self.theta.dims)}")
        return (self.k, self.k), "real"

    def as_matrix(self) -> Expr:
        return transpose_last(self.apply(eye(self.k)))

    def apply(self, x: Expr) -> Expr:
        m, (t,) = x.dims[0], self.theta.dims
        cos, sin = elementwise("cos", self.theta), elementwise("sin", self.theta)
        less = add(cos, scale(-1, ones((t,))))  # x G^T = x + the change on the planes
        xi = take(x, (INDEX[0], At(self.i, 1)), (m, t))
        xj = take(x, (INDEX[0], At(self.j, 1)), (m, t))
        di = add(contract("mt,t->mt", xi, less), scale(-1, contract("mt,t->mt", xj, sin)))
        dj = add(contract("mt,t->mt", xi, sin), contract("mt,t->mt", xj, less))
        place = [put(d, (INDEX[0], At(at, 1)), x.dims) for d, at in ((di, self.i), (dj, self.j))]
        return add(x, *place)

    @staticmethod
    def definition(xp: Any, i: Any, j: Any, theta: Any, k: int) -> Any:
        G = xp.eye(k, dtype=theta.dtype)
        G[i, i] = G[j, j] = xp.cos(theta)
        G[j, i] = xp.sin(theta)
        G[i, j] = -xp.sin(theta)
        return G

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        if rows != cols or rows < 2:
            return None
        t = rng.randrange(1, rows // 2 + 1)
        picks = rng.sample(range(rows), 2 * t)
        return cls.of(picks[:t], picks[t:], make(t), rows)
