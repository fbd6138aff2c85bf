"""Which matrix products are computed as their transpose, so that they lie in memory as what they are multiplied with.

An elementwise product of two matrices that lie otherwise takes eight times as long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adaptc.codegen.product import matrix_operands, turned
from adaptc.ir.expr import Expr
from adaptc.ir.prims import Add, Contract, Map, Scale


def transposed(order: Sequence[Expr], given: Mapping[Expr, str]) -> set[Expr]:
    """The matrices that lie in memory column by column; what is given lies row by row."""
    partners: dict[Expr, list[tuple[Expr, bool]]] = {}
    for e in order:
        if isinstance(e, Contract) and _entry_by_entry(e):
            (a, b), (la, lb) = e.operands, e.terms[0]
            partners.setdefault(a, []).append((b, la != lb))
            partners.setdefault(b, []).append((a, la != lb))
    found: set[Expr] = set()
    known: set[Expr] = set(given)
    for e in order:
        if e not in given and e.ndim == 2 and _by_columns(e, found, known, partners):
            found.add(e)
        known.add(e)
    return found


def _by_columns(
    e: Expr, found: set[Expr], known: set[Expr], partners: Mapping[Expr, Sequence[tuple[Expr, bool]]]
) -> bool:
    if isinstance(e, Contract):
        inputs, out = e.terms
        if len(e.operands) == 1:
            return (e.operands[0] in found) != (inputs[0] != out)
        if len(out) == 2 and _entry_by_entry(e):
            ways = [(op in found) != (letters != out) for op, letters in zip(e.operands, inputs, strict=True)]
            return ways[0]
        if matrix_operands(e, "a", "b") is None:
            return False
        if turned(e):
            return True
        asked = [(other in found) != crossed for other, crossed in partners.get(e, ()) if other in known]
        return bool(asked) and all(asked)
    if isinstance(e, Scale):
        return e.x in found
    if isinstance(e, Map):
        return all(a in found for a in e.args if a.ndim == 2) and any(a.ndim == 2 for a in e.args)
    return isinstance(e, Add) and all(t in found for t in e.terms)


def _entry_by_entry(e: Contract) -> bool:
    """A product of two matrices, entry by entry, perhaps with sums over rows or columns."""
    inputs, _ = e.terms
    return len(inputs) == 2 and all(len(t) == 2 and set(t) == set(inputs[0]) for t in inputs)
