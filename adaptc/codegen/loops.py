"""Steps on strided tensors, as `csrc/include/steps.h` takes them, and the order of their loops."""

from __future__ import annotations

from typing import NamedTuple

LOOPS = 12
PRODUCT, POWER, LARGER, GREATEST = "product", "power", "larger", "greatest"
FUNCTIONS = (
    "exp",
    "log",
    "sin",
    "cos",
    "tanh",
    "erf",
    "sigmoid",
    "nearest",
    "direction",
    "magnitude",
    "positive",
    "root",
    "inverse_root",
    "floor",
)
OPS = (PRODUCT, *FUNCTIONS, POWER, LARGER, GREATEST)
"""What a step does, in the order of `Op` in csrc/include/native.h."""


class Loop(NamedTuple):
    """How often, and by how many entries each operand goes on."""

    extent: int
    out: int
    a: int
    b: int


class Operand(NamedTuple):
    """A buffer, and where a tensor begins in it."""

    buffer: int
    at: int


class Step(NamedTuple):
    """out = scale * sum of a * b, or += it. The last loop is the inner one; sums: does it sum in a register? op: its
    number in OPS; of others than products out = op(a, b), and scale is the exponent of a power."""

    out: Operand
    a: Operand
    b: Operand
    op: int
    scale: float
    add: bool
    sums: bool
    loops: tuple[Loop, ...]


def joined(loops: list[Loop]) -> list[Loop]:
    """Loops over what lies in one run, as one."""
    loops = sorted(loops, key=lambda x: (abs(x.out), abs(x.a), abs(x.b)), reverse=True)
    found: list[Loop] = []
    for x in loops:
        last = found[-1] if found else None
        if last and all(p == q * x.extent for p, q in zip(last[1:], x[1:], strict=True)):
            found[-1] = Loop(last.extent * x.extent, *x[1:])
        else:
            found.append(x)
    return found


def ordered_loops(kept: list[Loop], sums: list[Loop]) -> tuple[list[Loop], bool]:
    """The loops, the cheapest inner one last; is it summed in a register?"""
    every = [*((x, False) for x in kept), *((x, True) for x in sums)]
    if not every:
        return [Loop(1, 0, 0, 0)], False

    def seconds(choice: tuple[Loop, bool]) -> float:
        loop, summed = choice
        unit = _unit(loop.a) and _unit(loop.b) and (summed or loop.out == 1)
        return (loop.extent / 8 + (4 if summed else 2) if unit else loop.extent + 2) / loop.extent

    inner, summed = min(every, key=seconds)
    rest = [x for x, _ in every if x is not inner]
    return [*rest, inner], summed


def _unit(stride: int) -> bool:
    return stride in (0, 1)
