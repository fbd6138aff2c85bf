"""Gathering along one axis of activations: what a matrix whose rows and columns are picked from another one does."""

from __future__ import annotations

import sympy

from adaptc.ir.build import add, broadcast, put, reduce_sum, reshape, take
from adaptc.ir.dims import Dim
from adaptc.ir.expr import Expr
from adaptc.ir.prims import INDEX, At, Index, Take


def picks(e: Take) -> bool:
    """Is entry (i, j) that of row f(i) and column g(j) of a matrix?"""
    return e.ndim == 2 and e.x.ndim == 2 and all(_along(entry, j) for j, entry in enumerate(e.index))


def _along(entry: Index, axis: int) -> bool:
    return entry.axis == axis if isinstance(entry, At) else entry.free_symbols == {INDEX[axis]}


def gathered(y: Expr, entry: Index, axis: int, n: Dim) -> Expr:
    """(m, d) -> (m, n): column j is that at entry(j). entry: along `axis` of the matrix."""
    period, d = _period(entry, axis), y.dims[1]
    if entry == INDEX[axis] and n == d:
        return y
    if period == d and isinstance(n, int) and isinstance(d, int) and n % d == 0:
        return reshape(broadcast(y, (y.dims[0], n // d, d), (0, 2)), (y.dims[0], n))
    return take(y, (INDEX[0], _moved(entry, axis)), (y.dims[0], n))


def gathered_back(x: Expr, entry: Index, axis: int, d: Dim) -> Expr:
    """(m, k) -> (m, d): column j is added to that at entry(j); the adjoint of `gathered`."""
    m, k = x.dims
    if entry == INDEX[axis] and k == d:
        return x
    if _period(entry, axis) == d and isinstance(k, int) and isinstance(d, int) and k >= d:
        whole = k - k % d
        head = take(x, INDEX[:2], (m, whole)) if whole < k else x
        total = reduce_sum(reshape(head, (m, whole // d, d)), (1,))
        rest = put(take(x, (INDEX[0], INDEX[1] + whole), (m, k - whole)), INDEX[:2], (m, d)) if whole < k else None
        return add(total, rest) if rest is not None else total
    return put(x, (INDEX[0], _moved(entry, axis)), (m, d))


def _period(entry: Index, axis: int) -> Dim | None:
    """The d of an index that runs from 0 to d - 1 again and again."""
    if not isinstance(entry, At) and isinstance(entry, sympy.Mod) and entry.args[0] == INDEX[axis]:
        return int(entry.args[1]) if entry.args[1].is_Integer else entry.args[1]
    return None


def _moved(entry: Index, axis: int) -> Index:
    return At(entry.table, 1) if isinstance(entry, At) else entry.xreplace({INDEX[axis]: INDEX[1]})
