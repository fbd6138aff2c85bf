"""A step of its own: entries of a^T b at some places, without the other entries.

einsum("mt,mt->t", a[:, rows], b[:, cols]) is the gradient of a sparse matrix. As written it gathers an m x t copy of
both operands; the step reads them where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from adaptc.ir.dims import TOKENS
from adaptc.ir.expr import Expr
from adaptc.ir.prims import INDEX, At, Contract, Take


class Sampled(NamedTuple):
    """out[t] = sum over m of a[m, rows[t]] b[m, cols[t]]."""

    a: Expr
    rows: Expr
    b: Expr
    cols: Expr


def sampled(e: Expr) -> Sampled | None:
    """The step that computes a contraction, if it is one."""
    if not isinstance(e, Contract) or e.spec != "ab,ab->b" or len(e.operands) != 2 or e.kind != "real":
        return None
    parts = [_columns(op) for op in e.operands]
    if parts[0] is None or parts[1] is None:
        return None
    return Sampled(*parts[0], *parts[1])


def _columns(e: Expr) -> tuple[Expr, Expr] | None:
    """a and the columns, for a[:, columns] with a row a token."""
    if not isinstance(e, Take) or e.x.ndim != 2 or e.x.dims[0] != TOKENS or e.x.kind != "real":
        return None
    first, second = e.index
    if first != INDEX[0] or not isinstance(second, At) or second.axis != 1:
        return None
    return e.x, second.table


def fused(nodes: Sequence[Expr], results: Sequence[Expr]) -> tuple[dict[Expr, Sampled], set[Expr]]:
    """Which of the nodes that a program computes are such steps, and the gathered operands that are then never made."""
    inside = set(nodes)
    found = {e: s for e in nodes if (s := sampled(e)) is not None and inside.issuperset(e.children)}
    users = {c for e in nodes if e not in found for c in e.children}
    return found, {op for e in found for op in e.children if op not in users and op not in results}
