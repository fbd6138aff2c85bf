"""Small values of parameters alone, computed together in one native call: for these the price of a call counts for more
than the arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from adaptc.codegen.strided import DTYPES, Strided, is_strided
from adaptc.codegen.types import Types
from adaptc.ir.expr import Expr
from adaptc.ir.prims import Add, Constant, Contract, Detach, Scale
from adaptc.plan.plan import is_view

ENTRIES = 1 << 14  # of a small value
WORK = 1 << 15  # products of a small step
FEWEST = 3  # steps in a call


@dataclass(frozen=True, eq=False)
class Cluster:
    """Nodes of a program that depend on nothing between them, in order; what they read, and what is read of them."""

    nodes: tuple[Expr, ...]
    inputs: tuple[Expr, ...]
    outputs: tuple[Expr, ...]

    def strided(self, dtype: str) -> Strided:
        """What the call computes."""
        return Strided(self.inputs, self.outputs, dtype)


def clusters(order: Sequence[Expr], given: Mapping[Expr, str], results: Sequence[Expr], types: Types) -> list[Cluster]:
    """The clusters of a program's nodes. A node is as deep as the number of times that one has to leave a cluster on
    the way to it: those that are equally deep go together."""
    made = [e for e in order if e not in given]
    some = {e for e in made if _is_small(e, types)}
    some = {e for e in some if not _joins_a_product(e, some)}
    depth: dict[Expr, int] = {}
    for e in order:
        below = [depth[c] + (c in some and e not in some) for c in e.children] if e not in given else []
        depth[e] = max(below, default=0)
    groups: dict[int, list[Expr]] = {}
    for e in made:
        if e in some:
            groups.setdefault(depth[e], []).append(e)
    read: dict[Expr, set[Expr]] = {}
    for e in made:
        for c in e.children:
            read.setdefault(c, set()).add(e)
    found = []
    for nodes in groups.values():
        inside = set(nodes)
        outputs = tuple(e for e in nodes if e in results or not read.get(e, set()) <= inside)
        inputs = tuple(dict.fromkeys(c for e in nodes for c in e.children if c not in inside))
        if inputs and sum(not _is_free(e) for e in nodes) >= FEWEST:
            found.append(Cluster(tuple(nodes), inputs, outputs))
    return found


def _is_free(e: Expr) -> bool:
    return is_view(e) or isinstance(e, (Constant, Detach)) or (isinstance(e, Contract) and len(e.operands) == 1)


def _is_small(e: Expr, types: Types) -> bool:
    every = (e, *e.children)
    if not is_strided(e) or any(not isinstance(d, int) for t in every for d in t.dims):
        return False
    if any(prod(int(d) for d in t.dims) > ENTRIES for t in every):
        return False
    if types[e] not in DTYPES or types[e] != types.wide or any(types[c] != types[e] for c in e.children):
        return False
    return not isinstance(e, Contract) or _work(e) <= WORK


def _work(e: Contract) -> int:
    inputs, _ = e.terms
    return prod(
        {c: int(d) for t, op in zip(inputs, e.operands, strict=True) for c, d in zip(t, op.dims, strict=True)}.values()
    )


def _joins_a_product(e: Expr, some: set[Expr]) -> bool:
    """A sum or scale that a large product does itself."""
    large = [c for c in e.children if isinstance(c, Contract) and len(c.operands) == 2 and c not in some]
    return isinstance(e, (Add, Scale)) and bool(large)
