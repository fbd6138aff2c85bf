"""Several adapters on one layer as one equation: `W' = f_last(... f_1(W))`, attach-stage values from the base W.

Dropout is part of it: `y = x W^T + bias' + sum_i D_i(x) (W_i - W_{i-1})^T`, with D_i the dropout of adapter i.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

from adaptc.equation import Equation, GivenSpec
from adaptc.errors import EquationError
from adaptc.ir.algebra import linear
from adaptc.ir.build import add, is_zero, ones, refold, scale, zeros
from adaptc.ir.dims import TOKENS, Dim
from adaptc.ir.expr import Expr, postorder, substitute
from adaptc.ir.prims import Leaf
from adaptc.ir.random import SEED, STREAMS, drop, is_random, settle
from adaptc.ir.rules import simplify
from adaptc.method import W_leaf, bias_leaf, x_leaf, y_leaf
from adaptc.runtime.attach import all_leaves

Part = tuple[Equation, float]
"""An adapter of a layer and its dropout probability."""


@dataclass(frozen=True)
class Stack:
    """The adapters of one layer shape, composed.

    leaves: per adapter, its leaves as the composed expressions name them, in the order they are held. given: what a
    call is given. weight, bias: the adapted ones, without noise and dropout; None in output form. output: y' over x,
    W, bias, the leaves, what is given and the seed. penalty: the sum of the penalties, None where there are none.
    max_saved: the most that may be kept for backward, bytes or (a float) times x. x_is_kept: by others, and then not
    counted.
    """

    n: Dim
    k: Dim
    has_bias: bool
    equations: tuple[Equation, ...]
    leaves: tuple[tuple[Leaf, ...], ...]
    given: tuple[GivenSpec, ...]
    weight: Expr | None
    bias: Expr | None
    output: Expr
    penalty: Expr | None = None
    max_saved: float | int | None = None
    x_is_kept: bool = False

    @functools.cached_property
    def arguments(self) -> tuple[Leaf, ...]:
        """x, W, the bias if there is one, every leaf, what is given, and the seed if anything is random."""
        base: list[Leaf] = [x_leaf(self.k), W_leaf(self.n, self.k)]
        if self.has_bias:
            base.append(bias_leaf(self.n))
        held = [leaf for leaves in self.leaves for leaf in leaves]
        return (*base, *held, *(g.leaf for g in self.given), *((SEED,) if self.seeded else ()))

    @functools.cached_property
    def seeded(self) -> bool:
        """Does the output change from call to call?"""
        return is_random(self.output)

    @property
    def gy(self) -> Leaf:
        """The gradient of the output."""
        return Leaf("gy", (TOKENS, self.n), "gradient")

    @property
    def adds_bias(self) -> bool:
        """Does the adapted layer have a bias where the base has none?"""
        return not self.has_bias and self.bias is not None and not is_zero(self.bias)

    @functools.cached_property
    def digest(self) -> str:
        """A name for the composed equation, the same in every process."""
        parts = [self.output.digest, *(f"{a.name}{a.dims}{a.kind}" for a in self.arguments)]
        parts += [] if self.max_saved is None else [repr(self.max_saved)]
        return hashlib.blake2b("".join(parts).encode(), digest_size=8).hexdigest()


@functools.lru_cache(maxsize=1024)
def stack(
    parts: tuple[Part, ...], n: Dim, k: Dim, has_bias: bool, training: bool, max_saved: float | int | None = None
) -> Stack:
    """Compose. Raises EquationError for a weight form after an output form."""
    x: Expr = x_leaf(k)
    W: Expr = W_leaf(n, k)
    base_bias: Expr = bias_leaf(n) if has_bias else zeros((n,))
    weight, bias = W, base_bias  # without noise, as they are merged
    now, direct = W, W  # with it, as they are applied
    dropped: list[tuple[Expr, Expr]] = []  # what dropout acts on; `now` is `direct` and these together
    now_bias: Expr = base_bias
    output: Expr | None = None
    named, penalties = [], []
    given: dict[str, GivenSpec] = {}
    for position, (equation, p) in enumerate(parts):
        mine: dict[Any, Leaf] = {leaf: _rename(leaf, position) for leaf in all_leaves(equation)}
        given.update(_same_meaning(given, equation))
        names: dict[Expr, Expr] = {**mine, W: now, bias_leaf(n): now_bias}
        rate = p if training else 0.0
        still: dict[Expr, Expr] = {**_defaults(equation), **mine, W: weight, bias_leaf(n): bias}
        penalties += [substitute(e, still) for e in equation.penalties]
        if equation.output is not None:
            names[y_leaf(n)] = output if output is not None else _applied(x, direct, dropped, now_bias)
            names[x] = drop(x, rate, STREAMS * position)
            output = substitute(settle(equation.output, position, training), names)
        elif output is not None:
            raise EquationError(
                f"'{equation.adapter.name}' adapts the weight and stands after "
                f"'{parts[position - 1][0].adapter.name}', which adapts the output: put weight forms first",
                equation.where,
            )
        else:
            weight, bias = _both(equation, weight, bias, still, position, training=False)
            before = now
            now, now_bias = _both(equation, now, now_bias, names, position, training)
            update = refold(add(now, scale(-1, before)))
            if rate and not is_zero(update):
                dropped.append((drop(x, rate, STREAMS * position), update))
            elif not rate:
                direct = refold(add(direct, update))
        named.append(tuple(mine.values()))
    weight, bias = simplify(weight), simplify(refold(bias))
    form: tuple[Any, Any] = (weight, bias) if output is None else (None, None)
    output = _applied(x, direct, dropped, now_bias) if output is None else simplify(refold(output))
    equations = tuple(equation for equation, _ in parts)
    penalty = simplify(refold(add(*penalties))) if penalties else None
    return Stack(n, k, has_bias, equations, tuple(named), tuple(given.values()), *form, output, penalty, max_saved)


def _both(
    equation: Equation, weight: Expr, bias: Expr, names: dict[Expr, Expr], position: int, training: bool
) -> tuple[Expr, Expr]:
    """The adapted weight and bias in place of the old ones."""
    assert equation.weight is not None
    new = substitute(settle(equation.weight, position, training), names)
    if equation.bias is None:
        return new, bias
    return new, substitute(settle(equation.bias, position, training), names)


def _applied(x: Expr, direct: Expr, dropped: list[tuple[Expr, Expr]], bias: Expr) -> Expr:
    """x direct^T + bias + the updates that dropout acts on."""
    y = linear(x, simplify(direct), simplify(refold(bias)))
    return add(y, *(linear(rows, simplify(update)) for rows, update in dropped)) if dropped else y


def _defaults(equation: Equation) -> dict[Expr, Expr]:
    """Numbers that stand for what a call may be given, for the merged weight."""
    return {g.leaf: scale(g.default, ones(g.leaf.dims)) for g in equation.asked if g.default is not None}


def _same_meaning(known: dict[str, GivenSpec], equation: Equation) -> dict[str, GivenSpec]:
    """What an equation is given at a call; a name that two adapters use is one tensor."""
    for g in equation.asked:
        if g.name in known and known[g.name].leaf is not g.leaf:
            raise EquationError(
                f"two adapters of a layer are given '{g.name}', {known[g.name].leaf.dims} at {known[g.name].where} "
                f"and {g.leaf.dims} here: rename one",
                g.where,
            )
    return {g.name: g for g in equation.asked}


def _rename(leaf: Leaf, position: int) -> Leaf:
    """Leaves of the first adapter keep their names; later ones carry their position."""
    return leaf if position == 0 else Leaf(f"{leaf.name}.{position}", leaf.size, leaf.role, leaf.of)


def needs(stack_: Stack, *roots: Expr) -> list[str]:
    """Names of what a call must give for these values."""
    reached = set(postorder(*roots))
    return [g.name for g in stack_.given if g.leaf in reached]
