"""A plan's program, or part of one, as strided steps on two tensors, for one native call.

A product, a sum, a scale, a transpose, a slice and a repeated entry are all of one kind here: out = or += scale times
the sum of a b, by strides; an elementwise function is a few steps of another kind. Sizes are numbers: a program is
lowered for each number of tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf, prod
from typing import Any, NamedTuple

import sympy

from adaptc.codegen.loops import (
    FUNCTIONS,
    GREATEST,
    LARGER,
    LOOPS,
    OPS,
    POWER,
    Loop,
    Operand,
    Step,
    joined,
    ordered_loops,
)
from adaptc.codegen.source import Source
from adaptc.codegen.types import Types
from adaptc.ir.dims import TOKENS, Dim, Shape, value
from adaptc.ir.expr import Expr
from adaptc.ir.functions import ARGS
from adaptc.ir.prims import (
    INDEX,
    Add,
    Broadcast,
    Constant,
    Contract,
    Detach,
    Index,
    Map,
    Put,
    Reduce,
    Reshape,
    Scale,
    Take,
)
from adaptc.ir.printer import brief
from adaptc.plan.plan import reach

DTYPES = ("float32", "float64")


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
    """Could a value be made by such steps, whatever its form? Nothing complex or whole, and no solver."""
    if isinstance(e, Map):
        return e.kind == "real" and all(_known(f) for f in e.fn.atoms(sympy.Function))
    return e.kind == "real" and isinstance(
        e, (Add, Broadcast, Constant, Contract, Detach, Put, Reduce, Reshape, Scale, Take)
    )


def _known(f: sympy.Expr) -> bool:
    return f.func.__name__ in (*FUNCTIONS, LARGER)


def is_strided(e: Expr) -> bool:
    """Is a value surely made by such steps, from what it is made of?"""
    if isinstance(e, (Take, Put)):
        indices = [i for i in e.index if isinstance(i, sympy.Expr)]
        dims = len(e.size if isinstance(e, Take) else e.x.dims)
        return e.kind == "real" and len(indices) == len(e.index) and all(_affine(i, dims) for i in indices)
    if isinstance(e, Constant):
        return isinstance(e.value, sympy.Expr) and bool(e.value.is_number)
    if isinstance(e, Scale) and isinstance(e.factor, sympy.Expr):
        return False
    return may_be_strided(e) and all(c.kind == "real" for c in e.children)


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
        return self.room(self.shape(dims))

    def room(self, size: tuple[int, ...]) -> _View:
        """The same, by numbers."""
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
        elif isinstance(e, Reduce):
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
        summed = [c for c in extents if strides[0].get(c, 0) == 0]  # several entries may be put in one place
        if any(extents[c] == 0 for c in summed):
            if not add:
                self.copy(_ONE, out[0], 0.0, False)
            return
        loops = {c: Loop(n, *(s.get(c, 0) for s in strides)) for c, n in extents.items() if n > 1}
        kept = joined([loop for c, loop in loops.items() if c not in summed])
        sums = joined([loop for c, loop in loops.items() if c in summed])
        ordered, in_register = ordered_loops(kept, sums)
        if len(sums) > in_register and not add:
            self.copy(_ONE, out[0], 0.0, False)
            add = True
        if len(ordered) > LOOPS:
            raise NotStrided
        first, second = a[0].operand, b[0].operand
        if not ordered[-1].a and ordered[-1].b:
            first, second = second, first
            ordered = [Loop(x.extent, x.out, x.b, x.a) for x in ordered]
        self.steps.append(Step(out[0].operand, first, second, 0, scale, add, in_register, tuple(ordered)))

    def elementwise(self, op: str, out: _View, a: _View, b: _View | None = None, scale: float = 0.0) -> _View:
        """out = op(a, b): a and b of out's size, or numbers."""
        a, b = (self.plain(v) for v in (a, b or _ONE))
        if 0 in (*out.size, *a.size):
            return out
        extents = a.size if op == GREATEST else out.size
        strides = [(v.strides if v.size else (0,) * len(extents)) for v in (out, a, b)]
        loops = [Loop(n, *each) for n, *each in zip(extents, *strides, strict=True) if n > 1]
        ordered, _ = ordered_loops(joined(loops), [])
        if len(ordered) > LOOPS:
            raise NotStrided
        to, first, second = (v.operand for v in (out, a, b))
        self.steps.append(Step(to, first, second, OPS.index(op), scale, False, False, tuple(ordered)))
        return out

    def plain(self, x: _View) -> _View:
        """The same numbers, with no factor beside them."""
        if x.factor == 1.0:
            return x
        out = self.room(x.size)
        self.copy(x, out, 1.0, False)
        return out

    def function(self, fn: sympy.Expr, args: Sequence[_View], size: tuple[int, ...]) -> _View:
        """The values of an elementwise function."""
        if fn.is_number:
            return replace(_ONE, factor=float(fn))
        if isinstance(fn, sympy.Symbol):
            return args[ARGS.index(fn)]
        if isinstance(fn, sympy.Add):
            out = self.room(size)
            for j, t in enumerate(fn.args):
                self.copy(self.function(t, args, size), out, 1.0, j > 0)
            return out
        if isinstance(fn, sympy.Mul):
            number, rest = fn.as_coeff_mul()
            first, *others = (self.function(t, args, size) for t in rest)
            for other in others:
                out = self.room(size)
                letters = [str(j) for j in range(len(size))]
                self.product(
                    (out, letters),
                    (first, letters if first.size else ()),
                    (other, letters if other.size else ()),
                    1.0,
                    False,
                )
                first = out
            return replace(first, factor=first.factor * float(number))
        if isinstance(fn, sympy.Pow):
            if not fn.exp.is_number:
                raise NotStrided
            return self.elementwise(POWER, self.room(size), self.function(fn.base, args, size), scale=float(fn.exp))
        if not _known(fn):
            raise NotStrided
        first, *others = (self.function(t, args, size) for t in fn.args)
        return self.elementwise(fn.func.__name__, self.room(size), first, others[0] if others else None)


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
        if not isinstance(entry, sympy.Expr) or not _affine(entry, len(size)):
            raise NotStrided
        parts = [entry.coeff(INDEX[j], 1) for j in range(len(size))]
        start = sympy.expand(entry - sum(p * INDEX[j] for j, p in enumerate(parts)))
        at += int(start) * step
        strides = [s + int(p) * step for s, p in zip(strides, parts, strict=True)]
    return replace(x, at=at, size=size, strides=tuple(strides))


def _affine(entry: sympy.Expr, dims: int) -> bool:
    parts = [entry.coeff(INDEX[j], 1) for j in range(dims)]
    start = sympy.expand(entry - sum(p * INDEX[j] for j, p in enumerate(parts)))
    return all(p.is_Integer for p in (start, *parts))


def _mapped(writer: _Writer, e: Map) -> _View:
    if not is_strided(e):
        raise NotStrided
    size = writer.shape(e.dims)
    return writer.function(e.fn, [writer.views[t] for t in e.args], size)


def _reduced(writer: _Writer, e: Reduce) -> _View | None:
    """The greatest entry along some axes; a sum is a product."""
    if e.op == "sum":
        return None
    out, x = writer.new(e.dims), writer.views[e.x]
    if 0 in out.size:
        return out
    if 0 in x.size:
        raise NotStrided
    writer.copy(replace(_ONE, factor=-inf), out, 1.0, False)
    kept = iter(out.strides)
    strides = tuple(0 if j in e.axes else next(kept) for j in range(e.x.ndim))
    writer.elementwise(GREATEST, replace(out, size=x.size, strides=strides), x)
    return out


def _taken(writer: _Writer, e: Take) -> _View:
    return _indexed(writer.views[e.x], e.index, writer.shape(e.size))


VIEWS: dict[type[Expr], Callable[[_Writer, Any], _View | None]] = {
    Contract: _permuted,
    Scale: _scaled,
    Broadcast: _laid,
    Reshape: _reshaped,
    Constant: _constant,
    Take: _taken,
    Map: _mapped,
    Reduce: _reduced,
    Detach: lambda writer, e: writer.views[e.x],
}
"""Nodes that need no step, or none always."""
