"""Several adapters on one layer as one equation: `W' = f_last(... f_1(W))`, attach-stage values from the base W."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from adaptc.errors import EquationError
from adaptc.ir.algebra import linear
from adaptc.ir.build import is_zero, refold, zeros
from adaptc.ir.dims import TOKENS
from adaptc.ir.expr import Expr, substitute
from adaptc.ir.prims import Leaf
from adaptc.ir.rules import simplify
from adaptc.method import Adapter, Equation, W_leaf, bias_leaf, x_leaf, y_leaf
from adaptc.runtime.attach import all_leaves


@dataclass(frozen=True)
class Stack:
    """The adapters of one layer shape, composed.

    leaves: per adapter, its leaves as the composed expressions name them, in the order they are held.
    weight, bias: the adapted ones, None in output form. output: y' over x, W, bias and the leaves.
    """

    n: int
    k: int
    has_bias: bool
    equations: tuple[Equation, ...]
    leaves: tuple[tuple[Leaf, ...], ...]
    weight: Expr | None
    bias: Expr | None
    output: Expr

    @property
    def arguments(self) -> tuple[Leaf, ...]:
        """x, W, the bias if there is one, then every leaf."""
        base: list[Leaf] = [x_leaf(self.k), W_leaf(self.n, self.k)]
        if self.has_bias:
            base.append(bias_leaf(self.n))
        return (*base, *(leaf for leaves in self.leaves for leaf in leaves))

    @property
    def gy(self) -> Leaf:
        """The gradient of the output."""
        return Leaf("gy", (TOKENS, self.n), "gradient")

    @property
    def adds_bias(self) -> bool:
        """Does the adapted layer have a bias where the base has none?"""
        return not self.has_bias and self.bias is not None and not is_zero(self.bias)


@functools.lru_cache(maxsize=512)
def stack(adapters: tuple[Adapter, ...], n: int, k: int, has_bias: bool) -> Stack:
    """Compose. Raises EquationError for a weight form after an output form."""
    weight: Expr = W_leaf(n, k)
    bias: Expr = bias_leaf(n) if has_bias else zeros((n,))
    output: Expr | None = None
    equations, named = [], []
    for position, adapter in enumerate(adapters):
        equation = adapter.trace(n, k)
        leaves = all_leaves(equation)
        mine: dict[Any, Leaf] = {leaf: _rename(leaf, position) for leaf in leaves}
        now: dict[Expr, Expr] = {**mine, W_leaf(n, k): weight, bias_leaf(n): bias}
        if equation.output is not None:
            now[y_leaf(n)] = output if output is not None else linear(x_leaf(k), weight, bias)
            output = substitute(equation.output, now)
        elif output is not None:
            raise EquationError(
                f"'{adapter.name}' adapts the weight and stands after '{adapters[position - 1].name}', "
                "which adapts the output: put weight forms first",
                equation.where,
            )
        else:
            assert equation.weight is not None
            weight, old = substitute(equation.weight, now), bias
            bias = substitute(equation.bias, now) if equation.bias is not None else old
        equations.append(equation)
        named.append(tuple(mine[leaf] for leaf in leaves))
    weight, bias = simplify(weight), simplify(refold(bias))
    if output is None:
        output, form = linear(x_leaf(k), weight, bias), (weight, bias)
    else:
        output, form = simplify(refold(output)), (None, None)  # type: ignore[assignment]
    return Stack(n, k, has_bias, tuple(equations), tuple(named), *form, output)


def _rename(leaf: Leaf, position: int) -> Leaf:
    """Leaves of the first adapter keep their names; later ones carry their position."""
    return leaf if position == 0 else Leaf(f"{leaf.name}.{position}", leaf.size, leaf.role, leaf.of)
