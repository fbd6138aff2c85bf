"""The steps of a plan as rows, numbered, with what each reads: the plan's graph as plain values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from adaptc.ir.expr import Expr, postorder
from adaptc.ir.prims import Broadcast, Contract, Leaf, Scale
from adaptc.plan.plan import Plan, is_view

FORWARD, BACKWARD = "forward", "backward"
Reads = list[int | str]
"""Numbers of steps, and names of leaves."""


@dataclass
class Graph:
    """The steps of a plan: forward first, numbered from 1."""

    plan: Plan
    rows: list[tuple[int, str, Expr]] = field(default_factory=list)

    def __post_init__(self) -> None:
        both = [(FORWARD, e) for e in self.plan.forward] + [(BACKWARD, e) for e in self.plan.backward]
        real = [(way, e) for way, e in both if not (is_view(e) or folded(e))]
        self.rows = [(number, way, e) for number, (way, e) in enumerate(real, 1)]
        self._number = {(way, e): number for number, way, e in self.rows}
        self._kept = {k.node for k in self.plan.kept}

    def reads(self, e: Expr, way: str) -> Reads:
        """What a step of one way reads, each once: steps and leaves, seen through what is no step."""
        return self._seen(e.children, way)

    def results(self) -> list[dict[str, object]]:
        """y, what is kept that y is not made of, and every gradient: way, name, and where it comes from."""
        below = set(postorder(self.plan.y))
        ends = [(FORWARD, "y", self.plan.y)]
        ends += [(FORWARD, "kept for backward", k.node) for k in self.plan.kept if k.node not in below]
        ends += [(BACKWARD, f"gradient of {leaf.name}", g) for leaf, g in self.plan.gradients]
        return [{"way": way, "name": name, "reads": self._seen([e], way)} for way, name, e in ends]

    def _seen(self, nodes: Iterable[Expr], way: str) -> Reads:
        found: dict[int | str, None] = {}
        waiting = [(e, way) for e in reversed(list(nodes))]
        while waiting:
            e, at = waiting.pop()
            if at == BACKWARD and e in self._kept:
                at = FORWARD
            if (at, e) in self._number:
                found[self._number[at, e]] = None
            elif isinstance(e, Leaf):
                found[e.name] = None
            else:
                waiting += [(c, at) for c in reversed(e.children)]
        return list(found)


def folded(e: Expr) -> bool:
    """Steps without work of their own: axes in another order, repeated entries, numbers that go into a product."""
    return isinstance(e, (Broadcast, Scale)) or (isinstance(e, Contract) and len(e.operands) == 1)
