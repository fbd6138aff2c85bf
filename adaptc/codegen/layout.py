"""Which matrix products are computed as their transpose, so that they lie in memory as what they are multiplied with
or added to: elementwise work on two matrices that lie otherwise takes eight times as long.

What is given lies row by row, and so should results. From there on back every user asks for what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adaptc.codegen.product import matrix_operands, turned
from adaptc.ir.expr import Expr
from adaptc.ir.prims import Add, Contract, Map, Scale


def transposed(order: Sequence[Expr], given: Mapping[Expr, str]) -> set[Expr]:
    """The matrix products, of the nodes of a program in order, that should lie column by column."""
    votes: dict[Expr, list[bool]] = {}
    found: set[Expr] = set()
    for e in reversed(order):
        if e in given:
            continue
        columns = bool(votes.get(e)) and all(votes[e])
        if isinstance(e, Contract) and is_matrix_product(e) and (columns or turned(e)):
            found.add(e)
        for child, vote in _asked(e, columns, given):
            votes.setdefault(child, []).append(vote)
    return found


def is_matrix_product(e: Contract) -> bool:
    """Is it one matrix product, in its own axis order?"""
    return len(e.operands) == 2 and matrix_operands(e, "a", "b") is not None


def _asked(e: Expr, columns: bool, given: Mapping[Expr, str]) -> list[tuple[Expr, bool]]:
    """How the matrices that a node reads should lie, if it is to lie column by column, or row by row."""
    if isinstance(e, (Scale, Map, Add)) and e.ndim == 2:
        fixed = any(c in given and c.ndim == 2 for c in e.children)
        return [(c, columns and not fixed) for c in e.children if c.ndim == 2]
    if not isinstance(e, Contract):
        return []
    inputs, out = e.terms
    if len(inputs) == 1:
        return [(e.operands[0], columns != (inputs[0] != out))] if len(out) == 2 else []
    if not all(len(t) == 2 and set(t) == set(inputs[0]) for t in inputs):
        return []
    found = []
    for j in (0, 1):
        if e.operands[1 - j] in given:
            found.append((e.operands[j], inputs[0] != inputs[1]))
        elif len(out) == 2:
            found.append((e.operands[j], columns != (inputs[j] != out)))
    return found
