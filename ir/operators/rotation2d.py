"""rotation2d(theta)."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.ir.algebra import elementwise
from adaptc.ir.build import add, batched, constant, eye
from adaptc.ir.dims import Shape
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make
from adaptc.ir.prims import INDEX, Constant


class Rotation2d(AbstractOperator):
    """[[cos, -sin], [sin, cos]] per angle, to be placed by block_diag or on_axes.

    Shapes: theta (...) in radians, a leaf or nested lists of numbers -> (..., 2, 2). Source: RoAd, arXiv:2409.00119.
    """

    theta: Expr

    @classmethod
    def of(cls, theta: Any) -> Expr:
        return cls(theta if isinstance(theta, Expr) else _written_out(theta))

    def infer(self) -> tuple[Shape, Kind]:
        return (*self.theta.dims, 2, 2), "real"

    def as_matrix(self) -> Expr:
        turn = constant(INDEX[0] - INDEX[1], (2, 2))  # [[0, -1], [1, 0]]
        cos, sin = elementwise("cos", self.theta), elementwise("sin", self.theta)
        return add(batched("...,ij->...ij", cos, eye(2)), batched("...,ij->...ij", sin, turn))

    @staticmethod
    def definition(xp: Any, theta: Any) -> Any:
        c, s = xp.cos(theta), xp.sin(theta)
        return xp.stack([xp.stack([c, -s], -1), xp.stack([s, c], -1)], -2)

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        return cls(make()) if (rows, cols) == (2, 2) else None


def _written_out(values: Any) -> Expr:
    """Nested lists of numbers as a constant."""
    shape: list[int] = []
    flat = [values]
    while isinstance(flat[0], (list, tuple)):
        shape.append(len(flat[0]))
        flat = [v for row in flat for v in row]
    return Constant(tuple(map(float, flat)), tuple(shape))
