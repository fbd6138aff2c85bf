"""Random values of an equation: what they are while training, and without it."""

from __future__ import annotations

import sympy

from adaptc.ir.build import apply, refold, scale, times, zeros
from adaptc.ir.dims import Shape
from adaptc.ir.expr import Expr, postorder, rewrite
from adaptc.ir.functions import ARGS
from adaptc.ir.matrix import RANDOM, Dropout, Noise
from adaptc.ir.prims import Draw, Leaf

SEED = Leaf("seed", (), "seed", "integer")
"""One whole number a call: every random value of a layer comes from it."""
STREAMS = 2**16  # of one adapter


def is_random(*roots: Expr) -> bool:
    """Does a value change from one training forward to the next?"""
    return any(isinstance(e, (Draw, *RANDOM)) for e in postorder(*roots))


def drop(A: Expr, p: float, stream: int) -> Expr:
    """A with entries set to 0 with probability p, the others divided by 1 - p."""
    if p == 0:
        return A
    if p == 1:
        return zeros(A.dims)
    return scale(1 / (1 - p), times(A, Draw(SEED, stream, A.dims, p)))


def normal(shape: Shape, stream: int) -> Expr:
    """Entries from N(0, 1), by Box and Muller from two uniform draws."""
    u, v = (Draw(SEED, stream + j, shape) for j in (0, 1))
    a, b = ARGS[:2]
    return apply(sympy.sqrt(-2 * sympy.log(1 - a)) * sympy.cos(2 * sympy.pi * b), u, v)


def settle(root: Expr, position: int, training: bool) -> Expr:
    """Noise and dropout by draws of the adapter at a position; without training 0, and the value itself."""

    def change(e: Expr) -> Expr | None:
        if isinstance(e, Noise):
            return normal(e.size, STREAMS * position + 2 * e.place) if training else zeros(e.size)
        if isinstance(e, Dropout):
            return drop(e.A, e.p, STREAMS * position + 2 * e.place) if training else e.A
        return None

    return refold(rewrite(root, change)) if is_random(root) else root
