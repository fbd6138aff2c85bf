"""What each primitive that does not sum is, entry by entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sympy

from adaptc.codegen.indices import NotTiled, divide, flat, reshaped
from adaptc.codegen.lower import RULES, Lowering, Places, Rule, Within
from adaptc.codegen.tile import Between, Context, Random, Value
from adaptc.ir.expr import Expr
from adaptc.ir.functions import ARGS
from adaptc.ir.prims import (
    INDEX,
    Add,
    At,
    Broadcast,
    Constant,
    Contract,
    Detach,
    Draw,
    Index,
    Map,
    Put,
    Reshape,
    Scale,
    Take,
)


def rule(cls: type[Expr]) -> Callable[[Rule], Rule]:
    """The rule of a primitive."""

    def add(function: Rule) -> Rule:
        RULES[cls] = function
        return function

    return add


@rule(Add)
def _add(low: Lowering, e: Add, at: Places, context: Context, within: Within) -> Value:
    values = [low.value(t, at, context, within) for t in e.terms]
    total = values[0]
    for v in values[1:]:
        total = low.compute(ARGS[0] + ARGS[1], [total, v], context) if v is not total else _twice(low, total, context)
    return total


def _twice(low: Lowering, v: Value, context: Context) -> Value:
    return low.compute(2 * ARGS[0], [v], context)


@rule(Scale)
def _scale(low: Lowering, e: Scale, at: Places, context: Context, within: Within) -> Value:
    if isinstance(e.factor, sympy.Expr) and not e.factor.is_number:
        raise NotTiled(f"the symbolic number {e.factor}")
    return low.compute(sympy.Float(float(e.factor)) * ARGS[0], [low.value(e.x, at, context, within)], context)


@rule(Map)
def _map(low: Lowering, e: Map, at: Places, context: Context, within: Within) -> Value:
    values = [low.value(t, at if t.dims else (), context, within) for t in e.args]
    return low.compute(e.fn, values, context)


@rule(Contract)
def _product(low: Lowering, e: Contract, at: Places, context: Context, within: Within) -> Value:
    inputs, out = e.terms
    places = dict(zip(out, at, strict=True))
    values = [
        low.value(op, tuple(places[c] for c in t), context, within) for op, t in zip(e.operands, inputs, strict=True)
    ]
    if len(values) == 1:
        return values[0]
    if values[0] is values[1]:
        return low.compute(ARGS[0] ** 2, values[:1], context)
    return low.compute(ARGS[0] * ARGS[1], values, context)


@rule(Reshape)
def _reshape(low: Lowering, e: Reshape, at: Places, context: Context, within: Within) -> Value:
    return low.value(e.x, reshaped(at, e.size, e.x.dims, low.extents), context, within)


@rule(Broadcast)
def _broadcast(low: Lowering, e: Broadcast, at: Places, context: Context, within: Within) -> Value:
    return low.value(e.x, tuple(at[j] for j in e.axes), context, within)


@rule(Detach)
def _detach(low: Lowering, e: Detach, at: Places, context: Context, within: Within) -> Value:
    return low.value(e.x, at, context, within)


@rule(Take)
def _take(low: Lowering, e: Take, at: Places, context: Context, within: Within) -> Value:
    return low.value(e.x, low.taken(e.index, at), context, within)


@rule(Put)
def _put(low: Lowering, e: Put, at: Places, context: Context, within: Within) -> Value:
    """What was put at an affine place: the entry there, or 0."""
    found = affine(e.index, e.x.ndim)
    if found is None:
        raise NotTiled("a scatter to places that are not in order")
    places: list[sympy.Expr] = [sympy.Integer(0)] * e.x.ndim
    bounds: list[Between | None] = []
    for i, (axis, step, start) in zip(at, found, strict=True):
        size = 1 if axis is None else e.x.dims[axis]
        if axis is not None:
            places[axis] = divide(sympy.expand(i - start), step, low.extents)
        high = start + step * (size - 1) + 1 if isinstance(size, int) else size
        whole = axis is not None and start == 0 and step == 1 and size == e.size[len(bounds)]
        bounds.append(None if whole else Between(i, start, high, step))
    more = tuple(b for b in bounds if b is not None)
    value = low.value(e.x, tuple(places), context, (*within, *more))
    if not more or value.name in low.zero:
        return value
    return low.where(value, (), more, 0.0, context)


def affine(index: Sequence[Index], axes: int) -> list[tuple[int | None, int, int]] | None:
    """(axis, step, start) of every entry of an index in which each axis stands once; axis None: a number."""
    found: list[tuple[int | None, int, int]] = []
    for entry in index:
        if isinstance(entry, At):
            return None
        entry = sympy.sympify(entry)
        symbols = entry.free_symbols & set(INDEX)
        if len(symbols) > 1:
            return None
        if not symbols:
            if not entry.is_Integer:
                return None
            found.append((None, 1, int(entry)))
            continue
        (symbol,) = symbols
        step, start = entry.coeff(symbol, 1), entry.coeff(symbol, 0)
        if sympy.expand(entry - step * symbol - start) != 0 or not (step.is_Integer and start.is_Integer and step > 0):
            return None
        found.append((INDEX.index(symbol), int(step), int(start)))
    used = [axis for axis, _, _ in found if axis is not None]
    return found if sorted(used) == list(range(axes)) else None


@rule(Constant)
def _constant(low: Lowering, e: Constant, at: Places, context: Context, within: Within) -> Value:
    if isinstance(e.value, tuple) or not e.value.is_number:
        raise NotTiled("a constant that is no number")
    return low.compute(sympy.Float(float(e.value)), [], context)


@rule(Draw)
def _draw(low: Lowering, e: Draw, at: Places, context: Context, within: Within) -> Value:
    row = at[0] if at else sympy.Integer(0)
    place = flat(at[1:], e.size[1:], low.extents) if len(at) > 1 else sympy.Integer(0)
    seed = low.load(low.buffers[e.seed], sympy.Integer(0), "int64", context, ())
    row, place = low.looked_up(row, context), low.looked_up(place, context)
    along, depth = low.reach([row, place], context)
    out = low.new(low.wide, context, along, depth)
    low.put(Random(out, seed.name, e.stream, row, place, e.drop), depth)
    return out
