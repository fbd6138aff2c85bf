"""Predicted seconds of steps on a device, as the search ranks plans by them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

from adaptc.ir.cost import cost
from adaptc.ir.dims import Dim, value
from adaptc.ir.expr import Expr
from adaptc.plan.device import Device
from adaptc.plan.order import ITEM
from adaptc.plan.plan import Plan, is_view

Price = Callable[[Expr], float]


def prices(where: Device, at: Mapping[object, int]) -> Price:
    """Predicted seconds of one step on a device, with numbers for every symbolic size."""

    def size(d: Dim) -> int:
        return d if isinstance(d, int) else value(d, at)

    @functools.cache
    def price(e: Expr) -> float:
        if is_view(e):
            return 0.0
        c = cost(e, size)
        return where.seconds(c.flops, ITEM * c.entries) if c.entries else 0.0

    return price


def predicted(chosen: Plan, price: Price) -> dict[str, float]:
    """Predicted seconds of a plan's forward and of its backward."""
    return {"forward": _total(chosen.forward, price), "backward": _total(chosen.backward, price)}


def _total(nodes: Iterable[Expr], price: Price) -> float:
    return float(sum(map(price, nodes)))
