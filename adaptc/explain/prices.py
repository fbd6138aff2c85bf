"""Predicted seconds of the steps of a plan, as the search ranks plans by them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from adaptc.explain.steps import BACKWARD, FORWARD
from adaptc.ir.dims import TOKENS
from adaptc.ir.expr import Expr
from adaptc.plan.device import device
from adaptc.plan.evaluate import step_seconds
from adaptc.plan.plan import Plan


@dataclass(frozen=True)
class Prices:
    """Seconds of each step of one way; steps without work of their own are left out."""

    ways: dict[str, dict[Expr, float]]

    def of(self, e: Expr, way: str) -> float:
        """Seconds of one step."""
        return self.ways[way].get(e, 0.0)

    def totals(self) -> dict[str, float]:
        """Seconds of forward and of backward."""
        return {way: float(sum(each.values())) for way, each in self.ways.items()}


def prices(chosen: Plan, rows: int) -> Prices:
    """What the steps of a plan take on its device at a number of tokens."""
    task = replace(chosen.task, at=(*chosen.task.at, (TOKENS, rows)))
    where = device(task.device)
    both = ((FORWARD, chosen.forward), (BACKWARD, chosen.backward))
    return Prices({way: step_seconds(task, where, nodes) for way, nodes in both})
