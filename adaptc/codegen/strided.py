"""A plan's program as strided products of two tensors, for one native call.

A product, a sum, a scale, a transpose, a slice and a repeated entry are all of one kind here: out = or += scale times
the sum of a b, by strides. Sizes are numbers: a program is lowered for each number of tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple

import sympy

from adaptc.codegen.source import Source
from adaptc.codegen.types import Types
from adaptc.ir.dims import TOKENS, Dim, Shape, value
from adaptc.ir.expr import Expr
from adaptc.ir.prims import (
    INDEX,
    Add,
    Broadcast,
    Constant,
    Contract,
    Detach,
    Index,
    Put,
    Reduce,
    Reshape,
    Scale,
    Take,
)
from adaptc.ir.printer import brief
from adaptc.plan.plan import reach

LOOPS = 12
DTYPES = ("float32", "float64")


class Loop(NamedTuple):
    """How often, and by how many entries each operand goes on."""

    extent: int
    out: int
    a: int
    b: int


class Operand(NamedTuple):
    """A buffer, and where a tensor begins in it."""

    buffer: int
    at: int


class Step(NamedTuple):
    """out = scale * sum of a * b, or += it. The last loop is the inner one; sums: does it sum in a register?"""

    out: Operand
    a: Operand
    b: Operand
    scale: float
    add: bool
    sums: bool
    loops: tuple[Loop, ...]


class Lowered(NamedTuple):
    """steps over buffers of some sizes: first those that are given, of some shapes, and the last holds a one."""

    steps: tuple[Step, ...]
    sizes: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def work(self) -> int:
        """Products in all."""
        return sum(prod(loop.extent for loop in s.loops) for s in self.steps)


@dataclass(frozen=True)
class _View:
    """Where the entries of a tensor are, and a number they are all to be multiplied by."""

    buffer: int
    at: int
    size: tuple[int, ...]
    strides: tuple[int, ...]
    factor: float = 1.0

    @property
    def operand(self) -> Operand:
        return Operand(self.buffer, self.at)


class NotStrided(Exception):
    """The program is not made of such steps alone."""


@dataclass(frozen=True)
class Strided:
    """What a function computes: results from arguments, all of one dtype."""

    arguments: tuple[Expr, ...]
    results: tuple[Expr, ...]
    dtype: str

    def at(self, rows: int) -> Lowered:
        """The steps for a number of tokens, with the results in buffers after those of the arguments.

        Raises: NotStrided.
        """
        return _lower(self.arguments, self.results, lambda d: value(d, {TOKENS: rows}))


def may_be_strided(e: Expr) -> bool:
    """Could a value be made by such steps, whatever its form? No elementwise function can, nor a solver."""
    return isinstance(e, (Add, Broadcast, Constant, Contract, Detach, Put, Reduce, Reshape, Scale, Take))


def emit_strided(
    name: str, arguments: Sequence[tuple[str, Expr]], results: Sequence[tuple[Expr, str]], types: Types, head: str
) -> Source:
    """The function `name(*arguments)` that returns `results`, by one call of the compiled steps.

    Raises: NotStrided.
    """
    dtypes = {*(types[e] for _, e in arguments), *(dtype for _, dtype in results)}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        raise NotStrided
    names = [n for n, _ in arguments]
    lines = [f"def {name}({', '.join(names)}):", f'    """{head}"""']
    row = next(n for n, e in arguments if e.dims and e.dims[0] == TOKENS)
    of = {e.dims: n for n, e in arguments}
    made = [f"r{j}" for j in range(len(results))]
    for r, (e, _) in zip(made, results, strict=True):
        size = ", ".join(f"{row}.shape[0]" if d == TOKENS else str(d) for d in e.dims)
        new = f"empty_like({of[e.dims]})" if e.dims in of else f"{row}.new_empty({size or '()'})"
        lines += [f"    {r} = {new}  # {brief(e, 50)}"]
    every = ", ".join((*names, *made))
    lines += [f"    if not steps({every}):", f"        [{', '.join(made)}] = straight(steps, {len(made)}, {every})"]
    lines += [f"    return {', '.join(made)}{',' * (len(made) == 1)}", ""]
    strided = Strided(tuple(e for _, e in arguments), tuple(e for e, _ in results), dtypes.pop())
    strided.at(1)
    return Source(name, "\n".join(lines), tuple(names), (), strided)


def _lower(arguments: Sequence[Expr], results: Sequence[Expr], size: Callable[[Dim], int]) -> Lowered:
    writer = _Writer(arguments, results, size)
    writer.write()
    one = len(writer.sizes)
    steps = tuple(
        s._replace(a=s.a if s.a.buffer >= 0 else Operand(one, 0), b=s.b if s.b.buffer >= 0 else Operand(one, 0))
        for s in writer.steps
    )
    shapes = tuple(tuple(map(size, e.dims)) for e in (*arguments, *results))
    return Lowered(steps, (*writer.sizes, 1), shapes)


_ONE = _View(-1, 0, (), ())


@dataclass
class _Writer:
    arguments: Sequence[Expr]
    results: Sequence[Expr]
    size: Callable[[Dim], int]
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sizes: list[int] = []
        self.views = {e: self.new(e.dims) for e in self.arguments}
        self.targets = [self.new(e.dims) for e in self.results]
        self.order = reach(self.results, self.arguments)
        self.uses: Counter[Expr] = Counter(c for e in self.order if e not in self.views for c in e.children)
        self.uses.update(self.results)

    def shape(self, dims: Shape) -> tuple[int, ...]:
        return tuple(map(self.size, dims))

    def new(self, dims: Shape) -> _View:
        """A buffer, row-major."""
        size = self.shape(dims)
        self.sizes.append(prod(size))
        return _View(len(self.sizes) - 1, 0, size, _straight(size))

    def write(self) -> None:
        """Every step, in order."""
        targets = dict(zip(reversed(self.results), reversed(self.targets), strict=True))
        taken = {c for e in self.order if isinstance(e, (Add, Scale)) for c in e.children}
        for e in self.order:
            if e in self.views:
                continue
            view = VIEWS.get(type(e), _computed)(self, e)
            if view is None and not (e in taken and self.uses[e] == 1):
                view = targets.get(e) or self.new(e.dims)
                self.into(e, view, 1.0, False)
            if view is not None:
                self.views[e] = view
        for e, target in zip(self.results, self.targets, strict=True):
            if self.views[e] != target:
                self.copy(self.views[e], target, 1.0, False)

    def into(self, e: Expr, out: _View, factor: float, add: bool) -> None:
        """out = factor * e, or += it."""
        if e in self.views:
            self.copy(self.views[e], out, factor, add)
        elif isinstance(e, Scale):
            self.into(e.x, out, factor * _number(e.factor), add)
        elif isinstance(e, Add):
            for j, t in enumerate(e.terms):
                self.into(t, out, factor, add or j > 0)
        elif isinstance(e, Contract) and len(e.operands) == 2:
            a, b = (self.views[op] for op in e.operands)
            (la, lb), lo = e.terms
            self.product((out, lo), (a, la), (b, lb), factor, add)
        elif isinstance(e, Reduce) and e.op == "sum":
            letters = [str(j) for j in range(e.x.ndim)]
            kept = [c for j, c in enumerate(letters) if j not in e.axes]
            self.product((out, kept), (self.views[e.x], letters), (_ONE, ()), factor, add)
        elif isinstance(e, Put):
            if not add:
                self.copy(_ONE, out, 0.0, False)
            self.copy(self.views[e.x], _indexed(out, e.index, self.shape(e.x.dims)), factor, True)
        else:
            raise NotStrided

    def copy(self, x: _View, out: _View, factor: float, add: bool) -> None:
        """out = factor * x, or += it; x may be one number."""
        letters = [str(j) for j in range(len(out.size))]
        self.product((out, letters), (x, letters if x.size else ()), (_ONE, ()), factor, add)

    def product(
        self,
        out: tuple[_View, Sequence[str]],
        a: tuple[_View, Sequence[str]],
        b: tuple[_View, Sequence[str]],
        factor: float,
        add: bool,
    ) -> None:
        """An einsum of two."""
        terms = (out, a, b)
        extents = {c: n for view, letters in terms for c, n in zip(letters, view.size, strict=True)}
        strides = [dict(zip(letters, view.strides, strict=True)) for view, letters in terms]
        scale = factor * a[0].factor * b[0].factor
        if any(extents[c] == 0 for c in out[1]):
            return
        summed = [c for c in extents if c not in strides[0]]
        if any(extents[c] == 0 for c in summed):
            if not add:
                self.copy(_ONE, out[0], 0.0, False)
            return
        loops = {c: Loop(n, *(s.get(c, 0) for s in strides)) for c, n in extents.items() if n > 1}
        kept = _joined([loop for c, loop in loops.items() if c not in summed])
        sums = _joined([loop for c, loop in loops.items() if c in summed])
        ordered, in_register = _ordered(kept, sums)
        if len(sums) > in_register and not add:
            self.copy(_ONE, out[0], 0.0, False)
            add = True
        if len(ordered) > LOOPS:
            raise NotStrided
        first, second = a[0].operand, b[0].operand
        if not ordered[-1].a and ordered[-1].b:
            first, second = second, first
            ordered = [Loop(x.extent, x.out, x.b, x.a) for x in ordered]
        self.steps.append(Step(out[0].operand, first, second, scale, add, in_register, tuple(ordered)))


def _joined(loops: list[Loop]) -> list[Loop]:
    """Loops over what lies in one run, as one."""
    loops = sorted(loops, key=lambda x: (abs(x.out), abs(x.a), abs(x.b)), reverse=True)
    found: list[Loop] = []
    for x in loops:
        last = found[-1] if found else None
        if last and all(p == q * x.extent for p, q in zip(last[1:], x[1:], strict=True)):
            found[-1] = Loop(last.extent * x.extent, *x[1:])
        else:
            found.append(x)
    return found


def _ordered(kept: list[Loop], sums: list[Loop]) -> tuple[list[Loop], bool]:
    """The loops, the cheapest inner one last; is it summed in a register?"""
    every = [*((x, False) for x in kept), *((x, True) for x in sums)]
    if not every:
        return [Loop(1, 0, 0, 0)], False

    def seconds(choice: tuple[Loop, bool]) -> float:
        loop, summed = choice
        unit = _unit(loop.a) and _unit(loop.b) and (summed or loop.out == 1)
        return (loop.extent / 8 + (4 if summed else 2) if unit else loop.extent + 2) / loop.extent

    inner, summed = min(every, key=seconds)
    rest = [x for x, _ in every if x is not inner]
    return [*rest, inner], summed


def _unit(stride: int) -> bool:
    return stride in (0, 1)


def _number(factor: float | sympy.Expr) -> float:
    if isinstance(factor, sympy.Expr):
        raise NotStrided
    return float(factor)


def _straight(size: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(size[j + 1 :]) for j in range(len(size)))


def _computed(writer: _Writer, e: Expr) -> None:
    return None


def _permuted(writer: _Writer, e: Contract) -> _View | None:
    if len(e.operands) == 2:
        return None
    x, ((letters,), out) = writer.views[e.operands[0]], e.terms
    order = [letters.index(c) for c in out]
    return replace(x, size=tuple(x.size[j] for j in order), strides=tuple(x.strides[j] for j in order))


def _scaled(writer: _Writer, e: Scale) -> _View | None:
    x = writer.views.get(e.x)
    return replace(x, factor=x.factor * _number(e.factor)) if x else None


def _laid(writer: _Writer, e: Broadcast) -> _View:
    x, size = writer.views[e.x], writer.shape(e.size)
    along = dict(zip(e.axes, x.strides, strict=True))
    return replace(x, size=size, strides=tuple(along.get(j, 0) for j in range(len(size))))


def _reshaped(writer: _Writer, e: Reshape) -> _View:
    x, size = writer.views[e.x], writer.shape(e.size)
    if x.strides != _straight(x.size):
        straight = writer.new(e.x.dims)
        writer.copy(x, straight, 1.0, False)
        x = straight
    return replace(x, size=size, strides=_straight(size))


def _constant(writer: _Writer, e: Constant) -> _View:
    if not isinstance(e.value, sympy.Expr) or not e.value.is_number:
        raise NotStrided
    size = writer.shape(e.dims)
    return replace(_ONE, size=size, strides=(0,) * len(size), factor=float(e.value))


def _indexed(x: _View, index: Sequence[Index], size: tuple[int, ...]) -> _View:
    """The entries of x at index(i0, i1, ...): where every index is affine, a view."""
    at, strides = x.at, [0] * len(size)
    for entry, step in zip(index, x.strides, strict=True):
        if not isinstance(entry, sympy.Expr):
            raise NotStrided
        parts = [entry.coeff(INDEX[j], 1) for j in range(len(size))]
        start = sympy.expand(entry - sum(p * INDEX[j] for j, p in enumerate(parts)))
        if not all(p.is_Integer for p in (start, *parts)):
            raise NotStrided
        at += int(start) * step
        strides = [s + int(p) * step for s, p in zip(strides, parts, strict=True)]
    return replace(x, at=at, size=size, strides=tuple(strides))


def _taken(writer: _Writer, e: Take) -> _View:
    return _indexed(writer.views[e.x], e.index, writer.shape(e.size))


VIEWS: dict[type[Expr], Callable[[_Writer, Any], _View | None]] = {
    Contract: _permuted,
    Scale: _scaled,
    Broadcast: _laid,
    Reshape: _reshaped,
    Constant: _constant,
    Take: _taken,
    Detach: lambda writer, e: writer.views[e.x],
}
"""Nodes that need no step, or none always."""
