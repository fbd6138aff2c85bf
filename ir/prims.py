"""The closed primitives. Every operator expands to these, and every pass has a rule for each of them.

Leaf, Constant, Contract, Add, Scale, Map, Reduce, Broadcast, Reshape, Take, Put, Transform, Solve, Cholesky,
Detach, Draw, TopK. Contractions are einsums without sums over one operand alone; `contract` makes them so.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, TypeAlias

import sympy

from adaptc.errors import InternalError, ShapeError
from adaptc.ir.dims import Dim, Shape, product, same, same_shape, show
from adaptc.ir.expr import Expr, Kind

INDEX = tuple(sympy.Symbol(f"i{j}", integer=True, nonnegative=True) for j in range(12))
"""Index symbols: i0, i1, ... run over the axes of the result of a Take or Constant, or of a Put's values."""


class At(NamedTuple):
    """An index read from the integer vector `table`, at the position along axis `axis`."""

    table: Expr
    axis: int


class Primitive(Expr):
    """One of the closed set of tensor operations."""

    registry: ClassVar[dict[str, type[Primitive]]] = {}

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        Primitive.registry[cls.__name__] = cls


class Leaf(Primitive):
    """A named tensor. role: weight, bias, token (x), output (y), gradient, param, frozen, attach, given, calibrated
    or seed."""

    name: str
    size: Shape
    role: str
    of: Kind = "real"

    def infer(self) -> tuple[Shape, Kind]:
        return self.size, self.of


class Constant(Primitive):
    """Entries by a SymPy expression of the indices i0, i1, ... (1 gives ones), or written out, row-major."""

    value: sympy.Expr | tuple[float, ...]
    size: Shape

    def infer(self) -> tuple[Shape, Kind]:
        return self.size, "real"


class Table(Primitive):
    """A vector of whole numbers, written out."""

    values: tuple[int, ...]

    def infer(self) -> tuple[Shape, Kind]:
        return (len(self.values),), "integer"


class Contract(Primitive):
    """Einstein sum: `ij,jk->ik`. Every summed index stands in two operands or more, none twice in one."""

    spec: str
    operands: tuple[Expr, ...]

    def infer(self) -> tuple[Shape, Kind]:
        sizes: dict[str, Dim] = {}
        inputs, out = self.terms
        for letters, op in zip(inputs, self.operands, strict=True):
            if len(letters) != op.ndim:
                raise ShapeError(f"einsum '{self.spec}': '{letters}' names {len(letters)} axes, got {show(op.dims)}")
            for letter, d in zip(letters, op.dims, strict=True):
                if not same(sizes.setdefault(letter, d), d):
                    raise ShapeError(f"einsum '{self.spec}': index {letter} is {sizes[letter]} and {d}")
        return tuple(sizes[c] for c in out), _promote(self.operands)

    @property
    def terms(self) -> tuple[list[str], str]:
        """Index letters of each operand, and of the result."""
        left, out = self.spec.split("->")
        return left.split(","), out


class Add(Primitive):
    """The sum of terms of one shape."""

    terms: tuple[Expr, ...]

    def infer(self) -> tuple[Shape, Kind]:
        first = self.terms[0]
        for t in self.terms[1:]:
            if not same_shape(first.dims, t.dims):
                raise ShapeError(f"cannot add {show(first.dims)} and {show(t.dims)}")
        return first.dims, _promote(self.terms)


class Scale(Primitive):
    """A number times a tensor. The number may depend on symbolic sizes."""

    factor: float | sympy.Expr
    x: Expr

    def infer(self) -> tuple[Shape, Kind]:
        return self.x.dims, self.x.kind


class Map(Primitive):
    """An elementwise SymPy function of a0, a1, ...; operands have one shape or are scalars."""

    fn: sympy.Expr
    args: tuple[Expr, ...]
    of: Kind = "real"

    def infer(self) -> tuple[Shape, Kind]:
        shape = max((t.dims for t in self.args), key=len)
        for t in self.args:
            if t.dims and not same_shape(t.dims, shape):
                raise ShapeError(f"elementwise operands of shapes {show(shape)} and {show(t.dims)}")
        return shape, self.of


class Reduce(Primitive):
    """sum or max along axes, which are dropped."""

    op: str
    x: Expr
    axes: tuple[int, ...]

    def infer(self) -> tuple[Shape, Kind]:
        return tuple(d for j, d in enumerate(self.x.dims) if j not in self.axes), self.x.kind


class Broadcast(Primitive):
    """x laid along `axes` of `size` and repeated along the others."""

    x: Expr
    size: Shape
    axes: tuple[int, ...]

    def infer(self) -> tuple[Shape, Kind]:
        if not same_shape(self.x.dims, tuple(self.size[j] for j in self.axes)):
            raise ShapeError(f"cannot lay {show(self.x.dims)} along axes {self.axes} of {show(self.size)}")
        return self.size, self.x.kind


class Reshape(Primitive):
    """The same entries, row-major, in another shape."""

    x: Expr
    size: Shape

    def infer(self) -> tuple[Shape, Kind]:
        if not same(product(self.x.dims), product(self.size)):
            raise ShapeError(
                f"cannot reshape {show(self.x.dims)} to {show(self.size)}: "
                f"{product(self.x.dims)} entries and {product(self.size)}"
            )
        return self.size, self.x.kind


Index: TypeAlias = sympy.Expr | At


class Take(Primitive):
    """result[i0, i1, ...] = x[index(i0, i1, ...)]: gather. One index per axis of x."""

    x: Expr
    index: tuple[Index, ...]
    size: Shape

    def infer(self) -> tuple[Shape, Kind]:
        _check_index(self.index, self.x.ndim, self.size)
        return self.size, self.x.kind


class Put(Primitive):
    """result = 0; result[index(i0, i1, ...)] += x[i0, i1, ...]: scatter, the adjoint of Take."""

    x: Expr
    index: tuple[Index, ...]
    size: Shape

    def infer(self) -> tuple[Shape, Kind]:
        _check_index(self.index, len(self.size), self.x.dims)
        return self.size, self.x.kind


class Transform(Primitive):
    """A fast transform along one axis, in float32 or wider: fft, ifft (as torch.fft), hadamard (Sylvester)."""

    name: str
    x: Expr
    axis: int

    def infer(self) -> tuple[Shape, Kind]:
        return self.x.dims, self.x.kind if self.name == "hadamard" else "complex"


class Solve(Primitive):
    """A^-1 B for small square matrices over leading batch axes, in float32 or wider."""

    A: Expr
    B: Expr

    def infer(self) -> tuple[Shape, Kind]:
        A, B = self.A.dims, self.B.dims
        if len(A) < 2 or not same(A[-1], A[-2]) or not same_shape(A[:-1], B[:-1]):
            raise ShapeError(f"cannot solve with {show(A)} for {show(B)}")
        return B, _promote((self.A, self.B))


class Cholesky(Primitive):
    """Lower L with L L^T = A for positive definite A over leading batch axes, in float32 or wider."""

    A: Expr

    def infer(self) -> tuple[Shape, Kind]:
        if self.A.ndim < 2 or not same(self.A.dims[-1], self.A.dims[-2]):
            raise ShapeError(f"the Cholesky factor needs a square matrix, got {show(self.A.dims)}")
        return self.A.dims, self.A.kind


class Detach(Primitive):
    """The value of x, a constant for derivatives."""

    x: Expr

    def infer(self) -> tuple[Shape, Kind]:
        return self.x.dims, self.x.kind


class Draw(Primitive):
    """Random numbers by counter: an entry depends on seed, stream, row and place in the row alone, so every backend
    draws the same. drop None: uniform on [0, 1), in steps of 2^-24. Else 0 with that probability, and 1."""

    seed: Expr
    stream: int
    size: Shape
    drop: float | None = None

    def infer(self) -> tuple[Shape, Kind]:
        if self.seed.dims or self.seed.kind != "integer":
            raise ShapeError(f"a seed is one whole number, got {self.seed.kind} {show(self.seed.dims)}")
        return self.size, "real"


class TopK(Primitive):
    """1 at the `count` largest entries along an axis (None: of all), 0 elsewhere; no derivative."""

    x: Expr
    count: int
    axis: int | None

    def infer(self) -> tuple[Shape, Kind]:
        room = product(self.x.dims) if self.axis is None else self.x.dims[self.axis]
        if isinstance(room, int) and not 0 <= self.count <= room:
            raise ShapeError(f"the {self.count} largest of {room} entries")
        return self.x.dims, "real"


def _promote(operands: tuple[Expr, ...]) -> Kind:
    kinds = {op.kind for op in operands}
    return "complex" if "complex" in kinds else "real" if "real" in kinds else "integer"


def _check_index(index: tuple[Index, ...], ndim: int, result: Shape) -> None:
    if len(index) != ndim:
        raise ShapeError(f"{len(index)} indices for {ndim} axes")
    for entry in index:
        if isinstance(entry, At) and not same_shape(entry.table.dims, (result[entry.axis],)):
            raise ShapeError(f"an index of {show(entry.table.dims)} runs along an axis of {result[entry.axis]}")


def only(cls: type[Primitive]) -> str:
    """The name a pass looks a primitive up by; raises for a class outside the closed set."""
    if cls.__name__ not in Primitive.registry:
        raise InternalError(f"{cls.__name__} is not a primitive")
    return cls.__name__
