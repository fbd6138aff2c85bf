"""An operator as a picture: one square an entry, grey by magnitude, drawn as SVG by ourselves so that it is the same
file on every machine."""

from __future__ import annotations

from itertools import count
from random import Random

import torch

from adaptc.ir.dims import show
from adaptc.ir.expr import Expr, postorder
from adaptc.ir.operator import AbstractOperator
from adaptc.ir.prims import Leaf, Table
from adaptc.ir.printer import formula
from adaptc.runtime.reference import Evaluator

SIZES = ((16, 16), (2, 2))
"""Shapes that are asked of `sample`, in order."""
TRIALS = 48
NEAR = 48  # entries that do not matter in the choice of an instance
CELL, GAP, MARGIN = 12, 1, 1
LEVELS = 15
NOTHING = 1e-9  # relative to the largest entry: rounding errors are no entries
TIE = 1e-6  # added before a level is rounded, so that the last bits of a sum do not choose it


def instance(cls: type[AbstractOperator]) -> Expr:
    """The sampled instance that shows most: about a quarter of its entries not zero, few and even leaves."""
    for shape in SIZES:
        drawn = [_sampled(cls, shape, trial) for trial in range(TRIALS)]
        found = [e for e in drawn if e is not None]
        if found:
            return min(found, key=_plainness)
    raise ValueError(f"{cls.name}: sample gives nothing of the shapes {SIZES}")


def _sampled(cls: type[AbstractOperator], shape: tuple[int, int], trial: int) -> Expr | None:
    names = count()

    def make(*size: int, nonzero: bool = False) -> Expr:
        j = next(names)
        letters = "ABCDEFGH" if len(size) > 1 else "vuwrst"
        return Leaf(letters[j] if j < len(letters) else f"{letters[0]}{j}", size, "param")

    return cls.sample(*shape, make, Random(f"{cls.name} {trial}"))


def _plainness(e: Expr) -> tuple[int, ...]:
    sizes = [leaf.dims for leaf in postorder(e) if isinstance(leaf, Leaf)]
    filled = sum(level > 0 for row in levels(e) for level in row)
    quarter = abs(filled - e.dims[0] * e.dims[1] // 4)
    entries = sum(torch.Size(s).numel() for s in sizes)
    ones = sum(s.count(1) for s in sizes)
    return (
        quarter // NEAR,
        sum(map(len, sizes)),
        quarter,
        ones,
        entries,
        -min((min(s, default=1) for s in sizes), default=0),
    )


def levels(e: Expr) -> list[list[int]]:
    """0 for zero, else 1 (small) to LEVELS (the largest magnitude), entry by entry."""
    values = {}
    for leaf in postorder(e):
        if isinstance(leaf, Leaf):
            numbers = Random(f"{e.digest} {leaf.name}")  # not torch's: the same in every version
            flat = [numbers.uniform(-1, 1) for _ in range(torch.Size(leaf.dims).numel())]
            values[leaf] = torch.tensor(flat, dtype=torch.float64).reshape(leaf.dims)
    size = Evaluator(values, torch.float64)(e).abs()
    share = (size / size.max()).tolist()
    return [[max(1, int(LEVELS * s + 0.5 + TIE)) if s > NOTHING else 0 for s in row] for row in share]


def caption(e: Expr) -> str:
    """The formula of an instance and the shapes of its leaves."""
    sizes = ", ".join(f"{leaf.name} {show(leaf.dims)}" for leaf in postorder(e) if isinstance(leaf, Leaf))
    text = formula(e)
    long = len(text) > 80 or any(isinstance(t, Table) and len(t.values) > 8 for t in postorder(e))
    drawn = f"{e.dims[0]} x {e.dims[1]}" if long else f"`{text}`, {e.dims[0]} x {e.dims[1]}"
    return f"{drawn}, with {sizes}" if sizes else drawn


def svg(e: Expr, title: str) -> str:
    """The picture: a frame and one path for each grey."""
    grid = levels(e)
    high, wide = (2 * MARGIN + CELL * n for n in (len(grid), len(grid[0])))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}">',
        f"<title>{title}</title>",
        f'<rect x="0.5" y="0.5" width="{wide - 1}" height="{high - 1}" fill="#fff" stroke="#999"/>',
    ]
    side = CELL - GAP
    for level in range(1, LEVELS + 1):
        at = [(i, j) for i, row in enumerate(grid) for j, value in enumerate(row) if value == level]
        if at:
            squares = "".join(f"M{MARGIN + CELL * j} {MARGIN + CELL * i}h{side}v{side}h-{side}z" for i, j in at)
            lines.append(f'<path fill="{_grey(level)}" d="{squares}"/>')
    return "\n".join([*lines, "</svg>", ""])


def _grey(level: int) -> str:
    shade = 224 - 192 * level // LEVELS
    return f"#{shade:02x}{shade:02x}{shade:02x}"
