"""Tile programs: what one kernel does, as a few kinds of steps on tiles, before it is printed in a language.

A program runs once for each tile of its output. Variables (`Axis`) run along the rows or the columns of a tile, or over
what is summed; an index is a SymPy expression of them. Arithmetic is in float32, products of 16-bit tiles are
accumulated in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import sympy

from adaptc.ir.dims import TOKENS, Dim, Shape
from adaptc.ir.expr import Expr

SPLITS = sympy.Symbol("splits", positive=True, integer=True)
"""Parts into which a sum over tokens is cut, each summed by a program of its own; chosen when a kernel is started."""


WHOLE = "P"
"""The tile size along a variable whose values are all in one tile."""


@dataclass(frozen=True)
class Axis:
    """A variable and how many values it takes. tile: the name of a tile's size along it; "" for one value at a time.
    part: does each program go through its own part of them?"""

    symbol: sympy.Symbol
    extent: Dim
    tile: str = ""
    part: bool = False

    @property
    def name(self) -> str:
        """Its name in generated text."""
        return str(self.symbol)


Context: TypeAlias = tuple[Axis | None, Axis | None]
"""The variables along the rows and the columns of a tile."""


@dataclass(frozen=True)
class Value:
    """A tile that was computed. along: is it a tile along the rows, the columns? context: where it can be read."""

    name: str
    dtype: str
    context: Context
    along: tuple[bool, bool]
    depth: int


@dataclass(frozen=True)
class Between:
    """A condition on an index: low <= index < high, and index - low a multiple of step."""

    index: sympy.Expr
    low: int
    high: Dim
    step: int = 1


@dataclass(frozen=True)
class Load:
    """out = buffer[at], 0 outside of the extents of the variables and of some bounds."""

    out: Value
    buffer: str
    at: sympy.Expr
    within: tuple[Between, ...] = ()


@dataclass(frozen=True)
class Compute:
    """out = a SymPy function of values (symbols of their names)."""

    out: Value
    fn: sympy.Expr


@dataclass(frozen=True)
class Place:
    """out = an index, as a number."""

    out: Value
    at: sympy.Expr


@dataclass(frozen=True)
class Cast:
    """out = a value in another dtype."""

    out: Value
    value: Value


@dataclass(frozen=True)
class Where:
    """out = a value inside of the extent of a variable and of some bounds, a number outside."""

    out: Value
    value: Value
    axes: tuple[Axis, ...]
    within: tuple[Between, ...]
    other: float


@dataclass(frozen=True)
class Random:
    """out = random numbers of a row and a place in it. drop None: uniform on [0, 1); else 0 with that probability."""

    out: Value
    seed: str
    stream: int
    row: sympy.Expr
    place: sympy.Expr
    drop: float | None


@dataclass(frozen=True)
class Fill:
    """out = a number in every entry: where a sum or a maximum starts."""

    out: Value
    number: float


@dataclass(frozen=True)
class Dot:
    """out += a @ b. a lies along the rows and what is summed, b along what is summed and the columns."""

    out: Value
    a: Value
    b: Value


@dataclass(frozen=True)
class Fold:
    """out = out + the sum of a value, or the larger one of both; over the columns of its context if `columns`."""

    out: Value
    value: Value
    op: str
    columns: bool


@dataclass(frozen=True)
class Store:
    """buffer[at] = value, inside of the extents of the variables. adds: added to what is there, whoever else adds."""

    buffer: str
    at: sympy.Expr
    value: Value
    adds: bool = False


@dataclass(frozen=True)
class Span:
    """All values of a variable, at once."""

    axis: Axis


@dataclass(frozen=True)
class System:
    """out = a^-1 b, for a of `size` rows, by elimination with row exchanges."""

    out: Value
    a: Value
    b: Value
    size: Dim


@dataclass(frozen=True)
class Largest:
    """out = 1 at the `count` largest entries of each row of `size`, 0 elsewhere."""

    out: Value
    value: Value
    count: int
    size: Dim


@dataclass(frozen=True)
class Loop:
    """The body for every value, or tile of values, of a variable."""

    axis: Axis
    body: tuple[Step, ...]


Step: TypeAlias = (
    Load | Compute | Place | Cast | Where | Random | Fill | Dot | Fold | Store | Span | System | Largest | Loop
)


@dataclass(frozen=True)
class Buffer:
    """A tensor in memory, row-major. role: "in", "out" (written by every program once) or "sum" (starts as zeros)."""

    name: str
    shape: Shape
    dtype: str
    role: str = "in"


@dataclass(frozen=True)
class Kernel:
    """One tile program. kind: of the step; grid: the variables that run over programs, the first the slowest.

    note: the subexpression it computes.
    """

    kind: str
    buffers: tuple[Buffer, ...]
    grid: tuple[Axis, ...]
    body: tuple[Step, ...]
    note: str = ""
    tiles: tuple[tuple[str, int], ...] = field(default=())


def every(body: tuple[Step, ...]) -> list[Step]:
    """All steps, those in loops too."""
    found: list[Step] = []
    for s in body:
        found.append(s)
        if isinstance(s, Loop):
            found += every(s.body)
    return found


def has_tokens(d: Dim) -> bool:
    """Does a size depend on the number of tokens?"""
    return not isinstance(d, int) and sympy.sympify(d).has(TOKENS)


class Tiled(Expr):
    """A tensor that a kernel computes from others. key: of the kernel."""

    key: str
    inputs: tuple[Expr, ...]
    size: Shape

    def infer(self) -> tuple[Shape, str]:
        return self.size, "real"
