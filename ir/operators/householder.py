"""householder(U)."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.errors import ShapeError
from adaptc.ir.build import add, apply, batched, contract, eye, scale, take
from adaptc.ir.dims import Shape, show
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.functions import ARGS
from adaptc.ir.operator import AbstractOperator, Make
from adaptc.ir.prims import INDEX, Broadcast


class Householder(AbstractOperator):
    """A chain of reflections: the product from left to right, i = 0 .. r-1, of I - 2 u_i u_i^T / (u_i^T u_i).

    Shapes: U (..., k, r), columns u_i, none of them zero -> (..., k, k). apply: r rank-one updates of x.
    The rule `compact_wy` gives the product as one rank-r update. Source: HRA, arXiv:2405.17484.
    """

    U: Expr

    def infer(self) -> tuple[Shape, Kind]:
        shape = self.U.dims
        if len(shape) < 2 or not isinstance(shape[-1], int):
            raise ShapeError(f"householder needs U (k, r) with a known number r of reflections, got {show(shape)}")
        return (*shape[:-1], shape[-2]), self.U.kind

    def column(self, i: int) -> Expr:
        """u_i."""
        lead = self.U.dims[:-1]
        return take(self.U, (*INDEX[: len(lead)], i + 0 * INDEX[0]), lead)

    def as_matrix(self) -> Expr:
        lead, k = self.U.dims[:-2], self.U.dims[-2]
        H: Expr = Broadcast(eye(k), (*lead, k, k), (len(lead), len(lead) + 1)) if lead else eye(k)
        for i in range(self._count()):
            u = self.column(i)
            inverse = apply(1 / ARGS[0], batched("...k,...k->...", u, u))
            H = add(H, scale(-2, batched("...ij,...j,...k,...->...ik", H, u, u, inverse)))
        return H

    def apply(self, x: Expr) -> Expr:
        if self.U.ndim > 2:
            return contract("mk,nk->mn", x, self.as_matrix())
        for i in reversed(range(self._count())):  # x H^T = x H_{r-1} ... H_0
            u = self.column(i)
            inverse = apply(1 / ARGS[0], contract("k,k->", u, u))
            x = add(x, scale(-2, contract("mj,j,k,->mk", x, u, u, inverse)))
        return x

    def _count(self) -> int:
        return int(self.U.dims[-1])

    @staticmethod
    def definition(xp: Any, U: Any) -> Any:
        I = xp.eye(U.shape[-2], dtype=U.dtype).expand(*U.shape[:-1], U.shape[-2])
        H = I
        for i in range(U.shape[-1]):
            u = U[..., i]
            H = H @ (I - 2 * xp.einsum("...i,...j->...ij", u, u) / (u * u).sum(-1)[..., None, None])
        return H

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        return cls(make(rows, rng.choice((1, 2, 3)), nonzero=True)) if rows == cols else None
