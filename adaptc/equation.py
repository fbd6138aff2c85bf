"""What tracing an adapter gives: its equation, the leaves it declares, what it is given, and the layer it may ask."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptc.ir.dims import Dim, Shape
from adaptc.ir.expr import Expr
from adaptc.ir.prims import Leaf

if TYPE_CHECKING:
    from adaptc.method import Adapter


@dataclass(frozen=True)
class LeafSpec:
    """A leaf of an equation and how it comes to be.

    dtype None: float32 on a 16-bit or quantised base, else the base's. shared: the key of one whole tensor for all
    layers. store False: not written to files, drawn again from its seed.
    """

    leaf: Leaf
    trainable: bool
    init: Any
    where: str
    shared: str | None = None
    seed: int | None = None
    store: bool = True
    dtype: str | None = None

    @property
    def name(self) -> str:
        """The leaf's name."""
        return self.leaf.name


@dataclass(frozen=True)
class GivenSpec:
    """A tensor from outside. at "call": an argument of the forward; at "attach": from `calibrate`. default None:
    it must be given."""

    leaf: Leaf
    at: str
    default: float | None
    where: str

    @property
    def name(self) -> str:
        """What it is given as."""
        return self.leaf.name.removeprefix("given.")


@dataclass(frozen=True)
class Layer:
    """What a method may ask of the layer it adapts. index: the last whole number in the name, None without one."""

    name: str
    kernel_size: tuple[int, ...] = (1, 1)
    groups: int = 1

    @property
    def kind(self) -> str:
        """The last part of the name: `q_proj`."""
        return self.name.rpartition(".")[2]

    @property
    def index(self) -> int | None:
        """Where the layer stands among its like."""
        found = re.findall(r"\d+", self.name)
        return int(found[-1]) if found else None


STAND_IN = Layer("layers.0.linear")
"""What an equation is told where there is no layer: to be shown, explained or verified."""


@dataclass(frozen=True, eq=False)
class Equation:
    """A traced adapter: the adapted weight and bias, or the adapted output, over named leaves.

    attach: leaves that hold values computed at attach time, and what they are. given: tensors from outside.
    penalties: scalars that are added to the loss. Equations are traced once and compared by identity.
    """

    adapter: Adapter
    n: Dim
    k: Dim
    weight: Expr | None
    bias: Expr | None
    output: Expr | None
    leaves: tuple[LeafSpec, ...]
    attach: tuple[tuple[Leaf, Expr], ...]
    where: str
    given: tuple[GivenSpec, ...] = ()
    penalties: tuple[Expr, ...] = ()
    layer: Layer | None = None

    def __reduce__(self) -> Any:
        return _again, (self.adapter, self.n, self.k, self.layer)

    @property
    def results(self) -> tuple[Expr | None, Expr | None, Expr | None]:
        """The adapted weight, bias and output."""
        return self.weight, self.bias, self.output

    @property
    def written(self) -> Expr:
        """What the equation says, as one expression of its leaves."""
        parts = [e for e in (self.output, self.weight, self.bias) if e is not None]
        return parts[0] if len(parts) == 1 else _Pair(tuple(parts))

    @property
    def asked(self) -> tuple[GivenSpec, ...]:
        """What a call is given beside x."""
        return tuple(g for g in self.given if g.at == "call")

    @property
    def is_output_form(self) -> bool:
        """Does the method give the layer's output rather than its weight?"""
        return self.output is not None


def _again(adapter_: Adapter, n: Dim, k: Dim, layer: Layer | None) -> Equation:
    return adapter_.trace(n, k, layer)


class _Pair(Expr):
    """Several results of one equation, side by side."""

    parts: tuple[Expr, ...]

    def infer(self) -> tuple[Shape, str]:
        return (), "real"
