"""A plan: the chosen program of one task, forward and backward together, as a frozen and printable object."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adaptc.errors import PlanError
from adaptc.ir.cost import NOTHING, Cost, cost
from adaptc.ir.dims import TOKENS, Dim, value
from adaptc.ir.expr import Expr, postorder
from adaptc.ir.prims import Constant, Draw, Leaf, Reshape, Table

TOKEN_ROLES = ("token", "output", "gradient")
CALL_ROLES = ("token", "given", "seed")
NOMINAL = 1024
"""Rows of x at which plans are chosen: what is kept must not depend on the number of tokens."""


At = tuple[tuple[object, int], ...]
"""Values for symbolic sizes."""


@functools.lru_cache(maxsize=4096)
def number(d: Dim, at: At) -> int:
    """A size as a number: the nominal number of tokens, and the values of `at`."""
    return d if isinstance(d, int) else value(d, {TOKENS: NOMINAL, **dict(at)})


@dataclass(frozen=True)
class Limit:
    """The most that may be kept for backward. amount: times the bytes of x if a float, else bytes at `rows` tokens.

    item: bytes of an entry of x; wide: of a value of parameters alone. x_is_kept: by others, so that it does not count.
    """

    amount: float | int
    item: int
    wide: int
    rows: int
    x_is_kept: bool = False


def max_saved(text: str | int | None) -> float | int | None:
    """A limit as users write it: bytes, or "1.5x", times the bytes of x. Raises PlanError."""
    if text is None or (isinstance(text, int) and not isinstance(text, bool) and text >= 0):
        return text
    if isinstance(text, str) and re.fullmatch(r"\d+(\.\d*)?x", text):
        return float(text[:-1])
    raise PlanError(f"max_saved is a number of bytes, or how often the bytes of x as in '1.5x', got {text!r}")


@dataclass(frozen=True)
class Task:
    """What is to be computed: y, and the gradients of `wrt`, in the sizes given by `at` where symbolic.

    kept: what passes from forward to backward; None where the planner is to choose. limit: of what is kept.
    """

    y: Expr
    gy: Leaf
    wrt: tuple[Leaf, ...]
    device: str
    at: At = ()
    kept: tuple[Kept, ...] | None = None
    limit: Limit | None = None

    def size(self, d: Dim) -> int:
        """A size as a number: the nominal number of tokens, and the values of `at`."""
        return number(d, self.at)


@dataclass(frozen=True)
class Choice:
    """One decision: the place, what was chosen, and what it was chosen from.

    of: what is decided: a "form", an "order", a form "for" one purpose alone, what is "kept" or computed "first".
    """

    where: Expr
    chosen: str
    options: tuple[str, ...]
    of: str = "form"
    purpose: str = ""


@dataclass(frozen=True)
class Kept:
    """A tensor kept from forward to backward, and why it is not computed again."""

    node: Expr
    reason: str


@dataclass(frozen=True)
class Plan:
    """y and the gradients as ordered primitives; `kept` passes from forward to backward beside the leaves."""

    task: Task
    y: Expr
    gradients: tuple[tuple[Leaf, Expr], ...]
    kept: tuple[Kept, ...]
    choices: tuple[Choice, ...]
    seconds: float
    apart: tuple[float, ...] = ()  # seconds of each purpose, were it alone

    @property
    def forward(self) -> list[Expr]:
        """The steps of the forward program, in order: y, and what is kept that y is not made of."""
        return steps([self.y, *(k.node for k in self.kept)], ())

    @property
    def backward(self) -> list[Expr]:
        """The steps of the backward program, in order: what is not kept is computed again."""
        return steps([g for _, g in self.gradients], [k.node for k in self.kept])

    @property
    def read(self) -> set[Leaf]:
        """The leaves that backward reads and only a call has: x, seeds, what is given."""
        return {e for e in self.inputs if e.role in CALL_ROLES}

    def saved_bytes(self, m: int, item: int = 4, wide: int = 4) -> int:
        """Bytes kept from forward to backward for m tokens, beside parameters. item: of an entry of x; wide: of a
        value of parameters alone."""
        total = 0
        for e in (*self.read, *(k.node for k in self.kept)):
            entries = 1
            for d in e.dims:
                entries *= value(d, {**dict(self.task.at), TOKENS: m})
            total += entries * (8 if e.kind in ("integer", "complex") else item if depends_on_tokens(e) else wide)
        return total

    @functools.cached_property
    def excess(self) -> int:
        """Bytes kept above the limit of the task."""
        limit = self.task.limit
        if limit is None:
            return 0
        there = self.x_bytes if limit.x_is_kept and any(e.role == "token" for e in self.read) else 0
        if isinstance(limit.amount, int):
            saved = self.saved_bytes(limit.rows, limit.item, limit.wide) - there * limit.rows
            return max(0, saved - limit.amount)
        return max(0, math.ceil(self.saved_bytes(1, limit.item, limit.wide) - there - limit.amount * self.x_bytes))

    @property
    def x_bytes(self) -> int:
        """Bytes of one row of x."""
        x = next((e for e in postorder(self.task.y) if isinstance(e, Leaf) and e.role == "token"), None)
        if x is None:
            return 0
        return self.task.size(x.dims[-1]) * (self.task.limit.item if self.task.limit else 4)

    @property
    def inputs(self) -> list[Leaf]:
        """Leaves that backward reads besides gy."""
        nodes = reach([g for _, g in self.gradients], [k.node for k in self.kept])
        return [e for e in nodes if isinstance(e, Leaf) and e.role != "gradient"]


def reach(roots: Sequence[Expr], stop: Sequence[Expr]) -> list[Expr]:
    """Nodes below roots, not looking below `stop`."""
    seen: dict[Expr, None] = {}
    halt, stack = set(stop), [*reversed(roots)]
    while stack:
        node = stack[-1]
        todo = () if node in seen or node in halt else [c for c in node.children if c not in seen]
        if todo:
            stack.extend(reversed(todo))
        else:
            seen[stack.pop()] = None
    return list(seen)


def steps(roots: Sequence[Expr], given: Sequence[Expr]) -> list[Expr]:
    """What a program computes: neither leaves and tables, nor what it is given."""
    halt = set(given)
    return [e for e in reach(roots, given) if e not in halt and not isinstance(e, (Leaf, Table))]


def total(nodes: Sequence[Expr], size: Callable[[Dim], object]) -> Cost:
    """The summed cost of steps."""
    result = NOTHING
    for e in nodes:
        result = result + cost(e, size)
    return result


@functools.lru_cache(maxsize=16384)
def depends_on_tokens(e: Expr) -> bool:
    """Does a value need x, y, gy, or something else with a row a token?"""
    return any(isinstance(c, (Leaf, Draw)) and _has_tokens(c) for c in postorder(e))


def _has_tokens(e: Leaf | Draw) -> bool:
    if isinstance(e, Leaf) and e.role in TOKEN_ROLES:
        return True
    return any(not isinstance(d, int) and d.has(TOKENS) for d in e.size)


def is_view(e: Expr) -> bool:
    """A node that needs no work of its own."""
    return isinstance(e, (Leaf, Table, Reshape, Constant))
