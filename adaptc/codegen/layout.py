"""Which matrix products are computed as their transpose, so that they lie in memory as what they are multiplied with
or added to: elementwise work on two matrices that lie otherwise takes eight times as long.

What is given lies row by row, and so should results. From there on back every user asks for what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adaptc.codegen.product import groups, turned
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
        if isinstance(e, Contract) and is_matrix_product(e) and (turned(e) or (columns and not turned(e, back=True))):
            found.add(e)
        for child, vote in _asked(e, columns, given):
            votes.setdefault(child, []).append(vote)
    return found


def is_matrix_product(e: Contract) -> bool:
    """Is it one matrix product, perhaps with sums over several axes?"""
    if len(e.operands) != 2:
        return False
    g = groups(e)
    return not g.batch and bool(g.summed) and len(g.left) == len(g.right) == 1


def _asked(e: Expr, columns: bool, given: Mapping[Expr, str]) -> list[tuple[Expr, bool]]:
    """How the matrices that a node reads should lie, if it is to lie column by column, or row by row."""
    if isinstance(e, (Scale, Map, Add)) and e.ndim == 2:
        read = [c for c in e.children if c.ndim == 2]
        known = [lies for c in read if (lies := _fixed(c, given)) is not None]
        return [(c, known[0] if known else columns) for c in read]
    if not isinstance(e, Contract):
        return []
    inputs, out = e.terms
    if len(inputs) == 1:
        return [(e.operands[0], columns != (inputs[0] != out))] if len(out) == 2 else []
    if not all(len(t) == 2 and set(t) == set(inputs[0]) for t in inputs):
        return []
    found = []
    for j in (0, 1):
        other = _fixed(e.operands[1 - j], given)
        if other is not None:
            found.append((e.operands[j], other != (inputs[0] != inputs[1])))
        elif len(out) == 2:
            found.append((e.operands[j], columns != (inputs[j] != out)))
    return found


def _fixed(e: Expr, given: Mapping[Expr, str]) -> bool | None:
    """Does what is given, or its transpose, lie column by column? None for anything else."""
    if e in given:
        return False
    if isinstance(e, Contract) and len(e.operands) == 1 and e.operands[0] in given:
        return e.terms[0][0] != e.terms[1]
    return None
