"""Nodes of the language above the primitives: products and transposes that keep their structure, and
values that exist from attach time on, and values that are random while training. `expand` turns products and
transposes into primitives, the runtime computes attach-time values once, `settle` resolves random ones."""

from __future__ import annotations

from adaptc.errors import ShapeError
from adaptc.ir.dims import Shape, same, same_shape, show
from adaptc.ir.expr import Expr, Kind


class MatMul(Expr):
    """A @ B on the last two axes; leading axes are batch and equal."""

    A: Expr
    B: Expr

    def infer(self) -> tuple[Shape, Kind]:
        A, B = self.A.dims, self.B.dims
        if not same(A[-1], B[-2]):
            raise ShapeError(f"cannot multiply {show(A)} with {show(B)}: {A[-1]} is not {B[-2]}")
        if not same_shape(A[:-2], B[:-2]):
            raise ShapeError(f"batch axes differ: {show(A)} @ {show(B)}")
        kind = "complex" if "complex" in (self.A.kind, self.B.kind) else "real"
        return (*A[:-1], B[-1]), kind


class Transpose(Expr):
    """The last two axes swapped."""

    A: Expr

    def infer(self) -> tuple[Shape, Kind]:
        s = self.A.dims
        return (*s[:-2], s[-1], s[-2]), self.A.kind


class Initial(Expr):
    """The value of an expression at attach time: parameters stand for their initial values."""

    A: Expr

    def infer(self) -> tuple[Shape, Kind]:
        return self.A.dims, self.A.kind


class Factor(Expr):
    """One output of an attach-stage factorisation. name: svd.U, svd.S, svd.Vt, qr.Q, qr.R, lu.P, lu.L, lu.U, pinv,
    nonzero."""

    name: str
    A: Expr
    size: Shape

    def infer(self) -> tuple[Shape, Kind]:
        return self.size, "integer" if self.name == "nonzero" else "real"


class Noise(Expr):
    """Entries from N(0, 1), new in every training forward, 0 in eval. place: which random value of the equation."""

    place: int
    size: Shape

    def infer(self) -> tuple[Shape, Kind]:
        return self.size, "real"


class Dropout(Expr):
    """While training, entries are 0 with probability p and the others divided by 1 - p; else A itself."""

    A: Expr
    p: float
    place: int

    def infer(self) -> tuple[Shape, Kind]:
        return self.A.dims, self.A.kind


RANDOM = (Noise, Dropout)
ATTACH = (Initial, Factor)
