"""A forward without gradients in two functions: values of the parameters alone, and the rest, which is given them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adaptc.codegen.source import Source
from adaptc.codegen.types import Types
from adaptc.ir.expr import Expr
from adaptc.ir.prims import Leaf
from adaptc.plan.hoist import hoisted
from adaptc.plan.plan import Plan, reach

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Split:
    """parameters(*needs) -> values; forward(x, *read, *values) -> (y,). needs, read: positions among the arguments."""

    parameters_source: Source
    forward_source: Source
    needs: tuple[int, ...]
    read: tuple[int, ...]

    def given(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the values are computed from. tensors: the arguments but x."""
        return [tensors[j - 1] for j in self.needs]

    def alike(self, other: Split) -> bool:
        """Are the values of another the same, as for another number of tokens?"""
        return (self.parameters_source, self.needs) == (other.parameters_source, other.needs)


def split(
    chosen: Plan, names: dict[Leaf, str], types: Types, write: Callable[..., Source], name: str, head: str
) -> Split | None:
    """Both functions of a plan without gradients; None where nothing is worth holding. names: of its arguments."""
    x, W, *_ = arguments = list(names)
    held = hoisted(chosen.y, chosen.task, _entries(W))
    if not held or chosen.gradients or chosen.kept:
        return None
    needs = _among(arguments, reach(held, ())) or [W]  # whose device says where tables are
    read = [x, *(a for a in _among(arguments, reach([chosen.y], held)) if a is not x)]
    parameters = write(f"{name}_parameters", [(names[a], a) for a in needs], [(e, types[e]) for e in held], types, head)
    given = replace(types, given={**types.given, **{e: types[e] for e in held}}, _known={})
    values = [(f"kept{j}", e) for j, e in enumerate(held)]
    forward = write(
        f"{name}_forward", [*((names[a], a) for a in read), *values], [(chosen.y, types.token)], given, head
    )
    at = {a: j for j, a in enumerate(arguments)}
    return Split(parameters, forward, tuple(at[a] for a in needs), tuple(at[a] for a in read[1:]))


def _entries(W: Leaf) -> int:
    n, k = W.dims
    return int(n) * int(k)


def _among(arguments: Sequence[Leaf], nodes: Sequence[Expr]) -> list[Leaf]:
    found = set(nodes)
    return [a for a in arguments if a in found]
