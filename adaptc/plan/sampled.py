"""Steps of their own for sparse matrices, which have one trained entry t at (rows[t], cols[t]).

einsum("mt,mt->t", a[:, rows], b[:, cols]) is the gradient of one, and y = 0; y[:, rows] += x[:, cols] * c its product.
As written they gather m x t copies; the steps read the operands where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import sympy

from adaptc.ir.dims import TOKENS
from adaptc.ir.expr import Expr
from adaptc.ir.prims import INDEX, At, Contract, Map, Put, Take


class Columns(NamedTuple):
    """x[:, at] with a row a token, or its complex conjugate."""

    x: Expr
    at: Expr
    conjugate: bool


class Sampled(NamedTuple):
    """out[t] = sum over m of a[m, rows[t]] b[m, cols[t]]."""

    a: Columns
    b: Columns

    @property
    def read(self) -> tuple[Expr, ...]:
        """The operands."""
        return self.a.x, self.a.at, self.b.x, self.b.at


class Scattered(NamedTuple):
    """out[m, rows[t]] += c[t] x[m, cols[t]], after out = 0."""

    x: Columns
    c: Expr
    rows: Expr

    @property
    def read(self) -> tuple[Expr, ...]:
        """The operands."""
        return self.x.x, self.x.at, self.c, self.rows


def scattered(e: Expr) -> Scattered | None:
    """The step that computes a scatter of scaled columns, if it is one."""
    if not isinstance(e, Put) or len(e.size) != 2 or not isinstance(e.x, Contract):
        return None
    first, rows = e.index
    product = e.x
    if first != INDEX[0] or not isinstance(rows, At) or rows.axis != 1 or len(product.operands) != 2:
        return None
    (left, right), out = product.terms
    picked, c = product.operands if len(left) == 2 else product.operands[::-1]
    if sorted((left, right), key=len) != [out[-1:], out] or c.ndim != 1:
        return None
    columns = _columns(picked)
    return None if columns is None else Scattered(columns, c, rows.table)


def sampled(e: Expr) -> Sampled | None:
    """The step that computes a contraction, if it is one."""
    if not isinstance(e, Contract) or e.spec != "ab,ab->b" or len(e.operands) != 2:
        return None
    parts = [_columns(op) for op in e.operands]
    if parts[0] is None or parts[1] is None:
        return None
    return Sampled(parts[0], parts[1])


def _columns(e: Expr) -> Columns | None:
    """The columns that a tensor with a row a token consists of, if that is what it is."""
    conjugate = isinstance(e, Map) and e.fn.has(sympy.conjugate)
    if isinstance(e, Map) and conjugate:
        e = e.args[0]
    if not isinstance(e, Take) or e.x.ndim != 2 or e.x.dims[0] != TOKENS:
        return None
    first, second = e.index
    if first != INDEX[0] or not isinstance(second, At) or second.axis != 1:
        return None
    return Columns(e.x, second.table, conjugate)


def _picked(some: Sequence[Expr]) -> list[Expr]:
    """Columns, and what they are the conjugates of."""
    return [e for c in some for e in (c, *(c.args if isinstance(c, Map) else ()))]


def fused(nodes: Sequence[Expr], results: Sequence[Expr]) -> tuple[dict[Expr, Sampled | Scattered], set[Expr]]:
    """Which of the nodes that a program computes are such steps, and what between their operands and them is then never
    made."""
    inside = set(nodes)
    found: dict[Expr, Sampled | Scattered] = {}
    between: dict[Expr, list[Expr]] = {}
    for e in nodes:
        picked = _picked(e.children)
        if (s := sampled(e)) is not None and inside.issuperset(picked):
            found[e], between[e] = s, picked
    users: dict[Expr, set[Expr]] = {}
    for e in nodes:
        for c in e.children:
            users.setdefault(c, set()).add(e)
    for e in nodes:
        t = scattered(e)
        if t is None or not isinstance(e, Put) or e.x not in inside or e.x in results or users[e.x] != {e}:
            continue
        picked = _picked([c for c in e.x.children if c is not t.c])
        if inside.issuperset(picked):  # else they are given, and what they were picked from is not
            found[e], between[e] = t, [e.x, *picked]
    passed = {e for some in between.values() for e in some}
    unmade: set[Expr] = set()
    for e in reversed(nodes):  # users first
        if e in passed and e not in results and all(u in unmade or e in between.get(u, ()) for u in users[e]):
            unmade.add(e)
    return found, unmade
