"""circulant(c)."""

from __future__ import annotations

from random import Random
from typing import Any

import sympy

from adaptc.ir.build import contract, real, take, transform
from adaptc.ir.dims import Shape
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make
from adaptc.ir.prims import INDEX


class Circulant(AbstractOperator):
    """The circulant matrix with first column c, as scipy.linalg.circulant: C[i, j] = c[(i - j) mod n].

    Shapes: c (..., n) -> (..., n, n). apply: a circular convolution of each row of x, by FFT.
    Source: C3A, arXiv:2407.19342.
    """

    c: Expr

    def infer(self) -> tuple[Shape, Kind]:
        return (*self.c.dims, self.c.dims[-1]), self.c.kind

    def as_matrix(self) -> Expr:
        lead, n = self.c.ndim - 1, self.c.dims[-1]
        return take(self.c, (*INDEX[:lead], sympy.Mod(INDEX[lead] - INDEX[lead + 1], n)), self.dims)

    def apply(self, x: Expr) -> Expr:
        if self.c.ndim > 1:
            return contract("mk,nk->mn", x, self.as_matrix())
        spectrum = contract("mk,k->mk", transform("fft", x, 1), transform("fft", self.c, 0))
        y = transform("ifft", spectrum, 1)
        return y if "complex" in (x.kind, self.c.kind) else real(y)

    @staticmethod
    def definition(xp: Any, c: Any) -> Any:
        n = c.shape[-1]
        i = xp.arange(n)
        return c[..., (i[:, None] - i[None, :]) % n]

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        return cls(make(rows)) if rows == cols else None
