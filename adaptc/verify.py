"""`verify`: the whole contract on one adapter, at the sizes its equation takes."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from adaptc.case import PLANS, ROOM, Case, through
from adaptc.console import rendered
from adaptc.equation import Equation
from adaptc.errors import AdaptcError, LawError, PlanError, ShapeError
from adaptc.ir.cost import entries
from adaptc.ir.dims import TOKENS, show, value
from adaptc.ir.expr import postorder
from adaptc.ir.operator import AbstractOperator
from adaptc.ir.printer import brief
from adaptc.laws import LAWS, WITHOUT_CALLS
from adaptc.method import Adapter, Method
from adaptc.nn import linear as paths
from adaptc.runtime.attach import Wholes, attach

SMALL = (
    (1, 1), (1, 4), (5, 3), (7, 13), (8, 12), (12, 8), (24, 16), (16, 24), (32, 48), (64, 32), (96, 64), (64, 128),
    (192, 128),
)  # fmt: skip
"""Outputs and inputs: one-sized, prime, rectangular; growing, for methods that ask for multiples of a block."""
LARGE = ((160, 96), (96, 160), (128, 256), (256, 512), (32, 24))
"""Where the planner may choose another form than at the smallest; the last where the others are too large."""
WANTED = 4
ROWS = 5
FEWER = 12  # candidate plans at all sizes but the largest


@dataclass(frozen=True)
class Verdict:
    """The laws that held, and where."""

    adapter: Adapter
    sizes: tuple[tuple[int, int], ...]
    laws: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "adapter": repr(self.adapter),
            "sizes": [list(s) for s in self.sizes],
            "laws": list(self.laws),
            "passed": True,
        }

    def __str__(self) -> str:
        return rendered(self, width=100)

    def __rich__(self) -> Table:
        where = ", ".join(f"{n} x {k}" for n, k in self.sizes)
        table = Table(title=f"{self.adapter}: every law holds at {where}", title_justify="left", box=None)
        table.add_column("law")
        table.add_column("says")
        for law in self.laws:
            table.add_row(law, (inspect.getdoc(LAWS[law]) or "").split("\n")[0])
        return table


def verify(adapter: Adapter | Method, n: int | None = None, k: int | None = None) -> Verdict:
    """Hold an adapter to the contract, smallest size first.

    n, k: one size to check instead of the usual ones. Raises: LawError naming the law that failed, with the smallest
    failing example; the equation's own error where it accepts no size.
    """
    bound = adapter() if isinstance(adapter, Method) else adapter
    if (n is None) != (k is None):
        raise PlanError("give both n and k to verify one size, or neither")
    sizes = [(n, k)] if n is not None and k is not None else accepted(bound)
    if len(sizes) == 1:
        trial(bound, *sizes[0])
    state = torch.random.get_rng_state()
    twice = min((s for s in sizes if min(s) > 1), default=sizes[0])
    try:
        for size in sizes:
            last = size == sizes[-1]
            ways = paths.ROUTES if size == twice else ("plain",)
            _check(bound, *size, plans=PLANS if last else FEWER, ways=ways)
    finally:
        torch.random.set_rng_state(state)
    return Verdict(bound, tuple(sizes), tuple(LAWS))


def _check(adapter: Adapter, n: int, k: int, plans: int, ways: tuple[str, ...]) -> None:
    for law, check in LAWS.items():
        at = [(5, way) for way in ways if way == "plain" or law not in WITHOUT_CALLS]
        for m, way in [(1, "plain"), *at] if law == "forward" else at:
            try:
                with through(way):
                    check(Case(adapter, n, k, m, plans))
            except LawError as error:
                raise LawError(
                    error.law, f"{adapter} at n = {n}, k = {k}, m = {m}{_by(way)}: {error.detail}"
                ) from error
            except AdaptcError as error:
                raise LawError(
                    law,
                    f"{adapter} at n = {n}, k = {k}, m = {m}{_by(way)} raises {type(error).__name__}: {error}",
                ) from error


def _by(way: str) -> str:
    return {"op": ", through the registered operators", "many": ", by the steps for many tokens"}.get(way, "")


def trial(adapter: Adapter, n: int, k: int) -> None:
    """Trace and attach at one size; raises what the equation raises."""
    equation = adapter.trace(n, k)
    wholes = Wholes()
    wholes.grow(equation)
    _require_small(equation)
    statistics = {g.name: torch.eye(*map(int, g.leaf.dims)) for g in equation.given if g.at == "attach"}
    attach(equation, torch.ones(n, k), wholes, statistics)


def _require_small(equation: Equation) -> None:
    """Raise where the dense definition of an operator is too large to be the oracle."""
    for e in postorder(equation.written):
        room = entries(e.dims, lambda d: value(d, {TOKENS: ROWS})) if isinstance(e, AbstractOperator) else 0
        if room > ROOM:
            raise ShapeError(f"{brief(e)} is {show(e.dims)}, too large to be formed and compared with")


def accepted(adapter: Adapter) -> list[tuple[int, int]]:
    """The sizes to check: the smallest that the equation takes, wide and tall where it can, and a larger one."""
    found: list[tuple[int, int]] = []
    last: Exception | None = None
    for n, k in SMALL:
        if len(found) >= WANTED and {a > b for a, b in found if a != b} == {True, False}:
            break
        last = _refusal(adapter, n, k) or last
        if _refusal(adapter, n, k) is None:
            found.append((n, k))
    large = next((size for size in LARGE if _refusal(adapter, *size) is None), None)
    found += [large] if large else []
    if not found:
        raise last or AdaptcError(f"{adapter} takes no size")
    return found


@functools.cache
def _refusal(adapter: Adapter, n: int, k: int) -> Exception | None:
    try:
        trial(adapter, n, k)
    except (AdaptcError, RuntimeError, ValueError) as error:
        return error
    return None
