"""Sizes: Python integers, or exact SymPy expressions of positive integers. Compared strictly.

A user's equation sees a symbolic size as `Size`. SymPy's own symbols answer `n == k` with False and
`k % 8 != 0` with True; a `Size` refuses to be ordered, compared, iterated or turned into a number.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

import sympy

from adaptc.errors import ShapeError, SymbolicSizeError

Dim: TypeAlias = int | sympy.Expr
Shape = tuple[Dim, ...]


def size_symbol(name: str) -> sympy.Symbol:
    """The one way a symbolic size is made."""
    return sympy.Symbol(name, positive=True, integer=True)


TOKENS = size_symbol("m")  # rows of x: always symbolic


class Size:
    """A symbolic size. Arithmetic gives sizes; anything that needs a number raises."""

    __slots__ = ("expr",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, expr: sympy.Expr) -> None:
        self.expr = expr

    def __repr__(self) -> str:
        return str(self.expr)

    def __add__(self, other: Any) -> Size:
        return Size(self.expr + _number(other))

    def __sub__(self, other: Any) -> Size:
        return Size(self.expr - _number(other))

    def __mul__(self, other: Any) -> Any:
        return Size(self.expr * _number(other)) if _is_number(other) else NotImplemented

    def __truediv__(self, other: Any) -> Any:
        return Size(self.expr / _number(other)) if _is_number(other) else NotImplemented

    def __pow__(self, other: Any) -> Size:
        return Size(self.expr ** _number(other))

    def __neg__(self) -> Size:
        return Size(-self.expr)

    def __rsub__(self, other: Any) -> Size:
        return Size(_number(other) - self.expr)

    def __rtruediv__(self, other: Any) -> Any:
        return Size(_number(other) / self.expr) if _is_number(other) else NotImplemented

    def __floordiv__(self, other: Any) -> Size:
        return Size(self.expr / _number(other))

    def __rfloordiv__(self, other: Any) -> Size:
        return Size(_number(other) / self.expr)

    __radd__ = __add__
    __rmul__ = __mul__

    def _refuse(self, *_: Any) -> NoReturn:
        raise SymbolicSizeError(
            f"the size {self.expr} is symbolic here and has no value, order or truth; "
            "give n and k to see the concrete form"
        )

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __bool__ = __int__ = __float__ = __index__ = __iter__ = __len__ = _refuse
    bit_length = __mod__ = __rmod__ = __divmod__ = __rdivmod__ = __round__ = __ceil__ = __floor__ = __trunc__ = _refuse


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Size, sympy.Expr))


def _number(value: Any) -> Any:
    return value.expr if isinstance(value, Size) else value


def as_dim(value: Any) -> Dim:
    """A size as the IR holds it. Raises ShapeError for anything that is not a whole number."""
    if isinstance(value, Size):
        value = value.expr
    if isinstance(value, sympy.Expr):
        return int(value) if value.is_Integer else value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ShapeError(f"a size must be a whole number, got {value!r}")
    size = operator.index(value)
    if size < 0:
        raise ShapeError(f"a size must not be negative, got {size}")
    return size


def as_shape(shape: Any) -> Shape:
    """A shape as the IR holds it; a lone size is a vector's."""
    return tuple(as_dim(d) for d in (shape if isinstance(shape, (tuple, list)) else (shape,)))


def same(a: Dim, b: Dim) -> bool:
    """Are two sizes equal for every value of their symbols?"""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return a == b or bool(sympy.expand(a - b) == 0)


def same_shape(a: Shape, b: Shape) -> bool:
    """Are two shapes equal, axis by axis?"""
    return len(a) == len(b) and all(map(same, a, b))


def product(shape: Shape) -> Dim:
    """The number of entries of a shape."""
    total: Dim = 1
    for d in shape:
        total = total * d
    return as_dim(total) if isinstance(total, sympy.Expr) else total


def quotient(a: Dim, b: Dim) -> Dim:
    """a / b, which must be whole."""
    if isinstance(a, int) and isinstance(b, int):
        if b == 0 or a % b:
            raise ShapeError(f"{b} does not divide {a}: choose a divisor of {a}")
        return a // b
    return as_dim(sympy.cancel(sympy.sympify(a) / b))


def value(d: Dim, at: Mapping[sympy.Symbol, int]) -> int:
    """The number a size stands for under the given values."""
    return d if isinstance(d, int) else int(d.xreplace(dict(at)))


def show(shape: Shape) -> str:
    """A shape for messages: `(n, 16)`."""
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
