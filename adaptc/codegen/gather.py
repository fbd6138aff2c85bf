"""Gather and scatter as torch text: slices where the index allows it, else one flat index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sympy

from adaptc.errors import UnsupportedError
from adaptc.ir.dims import Dim, Shape
from adaptc.ir.expr import Expr
from adaptc.ir.prims import INDEX, At, Index, Put

Dimension = Callable[[Dim], str]


def slices(index: Sequence[Index], result: Shape) -> str | None:
    """`[a:b, 3, c:d:2]` if every index is affine and they run through the result's axes in order."""
    parts, axis = [], 0
    for entry in index:
        if isinstance(entry, At):
            return None
        symbols = entry.free_symbols & set(INDEX)
        if not symbols:
            if not entry.is_Integer:
                return None
            parts.append(str(entry))
            continue
        if axis == len(result) or symbols != {INDEX[axis]}:
            return None
        step, start = entry.coeff(INDEX[axis], 1), entry.coeff(INDEX[axis], 0)
        if sympy.expand(entry - start - step * INDEX[axis]) != 0 or not (
            start.is_Integer and step.is_Integer and step > 0
        ):
            return None
        size = result[axis]
        if isinstance(size, int):
            stop = int(start) + (size - 1) * int(step) + 1 if size else int(start)
            parts.append(f"{start}:{stop}" + (f":{step}" if step != 1 else ""))
        elif start == 0 and step == 1:
            parts.append(":")
        else:
            return None
        axis += 1
    return f"[{', '.join(parts)}]" if axis == len(result) else None


def tiles(index: Sequence[Index], part: Shape, whole: Shape) -> list[int] | None:
    """How often a part lies beside itself along each axis of the whole, if an index says no more than that."""
    found = []
    if len(index) != len(whole) or not all(isinstance(d, int) and d for d in (*part, *whole)):
        return None
    for j, (entry, d, size) in enumerate(zip(index, part, whole, strict=True)):
        if isinstance(entry, At) or int(size) % int(d) or entry != sympy.Mod(INDEX[j], d):
            same = entry == INDEX[j] and d == size
            if not same:
                return None
        found.append(int(size) // int(d))
    return found


def stacked(terms: Sequence[Expr]) -> tuple[int, list[Expr]] | None:
    """The axis and the order in which the terms of a sum, each put into its own part of zeros, fill the whole."""
    puts = [t for t in terms if isinstance(t, Put) and slices(t.index, t.x.dims) and t.x.ndim == t.ndim]
    axes = {j for t in puts for j, entry in enumerate(t.index) if entry != INDEX[j] or t.x.dims[j] != t.dims[j]}
    if len(puts) < max(len(terms), 2) or len(axes) != 1:
        return None
    (axis,) = axes
    starts = {t.index[axis] - INDEX[axis]: t.x for t in puts}
    at, order = sympy.Integer(0), []
    while at in starts:
        order.append(starts.pop(at))
        at += order[-1].dims[axis]
    return (axis, order) if len(order) == len(puts) and at == terms[0].dims[axis] else None


def prefix(index: Sequence[Index], source: Shape, result: Shape) -> int:
    """How many leading axes are left alone."""
    count = 0
    for j, entry in enumerate(index):
        alone = entry == INDEX[j] and j < len(result) and source[j] == result[j]
        used = [e for i, e in enumerate(index) if i != j and not isinstance(e, At) and INDEX[j] in e.free_symbols]
        used += [e for e in index if isinstance(e, At) and e.axis == j]
        if not alone or used:
            break
        count += 1
    return count


def flat_index(
    index: Sequence[Index],
    shape: Shape,
    run: Shape,
    skip: int,
    name: Callable[[Expr], str],
    table: Callable[[sympy.Expr, Shape], str],
    dimension: Dimension,
) -> str:
    """Text of the flat position inside the axes after `skip`, for every index of `run`.

    Entries that SymPy knows are tabulated once; entries read from integer leaves are computed. Along tokens there can
    only be the latter.
    """
    sizes = shape[skip:]
    if not all(isinstance(d, int) for d in sizes):
        raise UnsupportedError("cannot gather across tokens: the position would depend on their number")
    moved = {INDEX[j + skip]: INDEX[j] for j in range(len(run))}
    known, looked_up, stride = sympy.Integer(0), [], 1
    for entry, d in reversed(list(zip(index[skip:], sizes, strict=True))):
        if isinstance(entry, At):
            view = ["1"] * len(run)
            view[entry.axis - skip] = "-1"
            times = "" if stride == 1 else f" * {stride}"
            looked_up.append(f"{name(entry.table)}.reshape({', '.join(view)}){times}")
        else:
            known = known + stride * entry.xreplace(moved)
        stride *= int(d)
    if known != 0 or not looked_up:
        if any(INDEX[j] in known.free_symbols for j, d in enumerate(run) if not isinstance(d, int)):
            raise UnsupportedError("an index that is computed from the token's number cannot be gathered")
        looked_up.append(table(known, tuple(d if isinstance(d, int) else 1 for d in run)))
    text = " + ".join(looked_up)
    return f"({text}).expand({', '.join(map(dimension, run))}).reshape(-1)"
