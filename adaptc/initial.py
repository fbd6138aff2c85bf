"""Initial values of leaves, as data. The runtime draws them (`runtime/attach.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adaptc.errors import EquationError
from adaptc.ir.algebra import described
from adaptc.ir.expr import Expr


@dataclass(frozen=True)
class Init:
    """A named initialiser and its numbers; printable, so that it can stand in a saved text form."""

    name: str
    numbers: tuple[float, ...] = ()
    count: int | None = None

    def __getitem__(self, item: slice) -> Init:
        """`randperm(N)[:count]`."""
        if self.name != "randperm" or item.start is not None or item.step is not None:
            raise EquationError("only randperm(N)[:count] can be cut")
        return Init(self.name, self.numbers, item.stop)

    def __str__(self) -> str:
        inside = ", ".join(f"{v:g}" for v in self.numbers)
        return f"{self.name}({inside})" + (f"[:{self.count}]" if self.count is not None else "")


NAMED = {name: Init(name) for name in ("zeros", "ones", "identity", "kaiming_uniform", "orthogonal", "paired_kaiming")}


def normal(std: Any, mean: float = 0.0) -> Init:
    """Entries from N(mean, std^2)."""
    return Init("normal", (float(std), float(mean)))


def uniform(a: Any, b: Any) -> Init:
    """Entries from U(a, b)."""
    return Init("uniform", (float(a), float(b)))


def kaiming_uniform(a: float = 5**0.5) -> Init:
    """U(-c, c) with c = sqrt(6 / ((1 + a^2) fan_in)), fan_in the last axis of the whole leaf."""
    return Init("kaiming_uniform", (float(a),))


def bernoulli(p: float) -> Init:
    """Entries 1 with probability p, else 0."""
    return Init("bernoulli", (float(p),))


def randperm(N: Any) -> Init:
    """A permutation of 0 .. N-1, cut to the leaf's length: whole numbers."""
    return Init("randperm", (int(N),) if isinstance(N, int) else ())


Initial = Init | float | Expr | Callable[..., Any]


def as_init(value: Any) -> Any:
    """What a leaf's `init` may be: a name, an Init, a number, an attach-stage expression, a callable."""
    if isinstance(value, str):
        if value not in NAMED:
            raise EquationError(f"unknown initialiser '{value}': one of {', '.join(NAMED)}")
        return NAMED[value]
    if isinstance(value, (Init, Expr)) or callable(value):
        return value
    if isinstance(value, (int, float)):
        return Init("constant", (float(value),))
    raise EquationError(f"cannot initialise a leaf with {described(value)}")
