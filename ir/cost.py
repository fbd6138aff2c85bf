"""What one primitive costs, as an expression of its sizes: floating-point operations and bytes moved.

`size` turns a size into what the caller counts in: numbers for the planner, SymPy for a formula.
Views and leaves cost nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from math import log2
from typing import Any

import sympy

from adaptc.ir.dims import Dim, Shape
from adaptc.ir.expr import Expr
from adaptc.ir.prims import (
    Add,
    Cholesky,
    Constant,
    Contract,
    Draw,
    Put,
    Reduce,
    Scale,
    Solve,
    Take,
    TopK,
    Transform,
    only,
)

Sizer = Callable[[Dim], Any]


@dataclass(frozen=True)
class Cost:
    """flops: multiplications and additions. entries: tensor entries read and written. gemm: flops in products."""

    flops: Any
    entries: Any
    gemm: Any = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.entries + other.entries, self.gemm + other.gemm)


NOTHING = Cost(0, 0)


def entries(shape: Shape, size: Sizer) -> Any:
    """The number of entries of a tensor."""
    total: Any = 1
    for d in shape:
        total = total * size(d)
    return total


def cost(node: Expr, size: Sizer) -> Cost:
    """The cost of computing a node from its operands."""
    return RULES[only(type(node))](node, size)  # type: ignore[arg-type]


def _traffic(node: Expr, size: Sizer) -> Any:
    total = entries(node.dims, size)
    for c in node.children:
        total = total + entries(c.dims, size)
    return total


def _free(node: Any, size: Sizer) -> Cost:
    return NOTHING


def _contract(node: Contract, size: Sizer) -> Cost:
    inputs, out = node.terms
    sizes: dict[str, Any] = {}
    for letters, op in zip(inputs, node.operands, strict=True):
        for letter, d in zip(letters, op.dims, strict=True):
            sizes[letter] = size(d)
    if len(inputs) == 1:
        return NOTHING  # axes in another order
    work: Any = 1
    for s in sizes.values():
        work = work * s
    summed = set(sizes) - set(out)
    flops = work * (2 if summed else len(inputs) - 1) * (4 if node.kind == "complex" else 1)
    return Cost(flops, _traffic(node, size), flops if summed else 0)


def _elementwise(per_entry: Callable[[Any], int]) -> Callable[[Any, Sizer], Cost]:
    def rule(node: Any, size: Sizer) -> Cost:
        return Cost(per_entry(node) * entries(node.dims, size), _traffic(node, size))

    return rule


@functools.lru_cache(maxsize=4096)
def _operations(fn: sympy.Expr) -> int:
    return int(fn.count_ops())


def _sum(node: Add, size: Sizer) -> Cost:
    """Products are added where they are computed: each other term is read, and the sum written once more."""
    count = entries(node.dims, size)
    read = sum(1 for t in node.terms if not isinstance(_inner(t), Contract))
    return Cost((len(node.terms) - 1) * count, max(read + 1, len(node.terms) - 1) * count)


def _inner(e: Expr) -> Expr:
    return e.x if isinstance(e, Scale) else e


def _number(node: Scale, size: Sizer) -> Cost:
    """A number goes into the product or sum it scales."""
    return Cost(entries(node.dims, size), 0)


def _transform(node: Transform, size: Sizer) -> Cost:
    n = size(node.dims[node.axis])
    logarithm = log2(n) if isinstance(n, int) else sympy.log(n, 2)
    return Cost(5 * logarithm * entries(node.dims, size), 4 * _traffic(node, size))


def _solve(node: Solve, size: Sizer) -> Cost:
    b, batch = size(node.A.dims[-1]), entries(node.A.dims[:-2], size)
    flops = batch * (2 * b**3 // 3 if isinstance(b, int) else 2 * b**3 / 3) + 2 * b * entries(node.B.dims, size)
    return Cost(flops, _traffic(node, size))


def _cholesky(node: Cholesky, size: Sizer) -> Cost:
    b = size(node.A.dims[-1])
    return Cost(b * entries(node.A.dims, size), _traffic(node, size))


def _constant(node: Constant, size: Sizer) -> Cost:
    return Cost(0, entries(node.dims, size))


def _reduce(node: Reduce, size: Sizer) -> Cost:
    return Cost(entries(node.x.dims, size), _traffic(node, size))


def _move(node: Take | Put, size: Sizer) -> Cost:
    return Cost(0, 2 * _traffic(node, size))


DRAW = 12  # operations on whole numbers an entry


def _draw(node: Draw, size: Sizer) -> Cost:
    return Cost(DRAW * entries(node.dims, size), entries(node.dims, size))


def _largest(node: TopK, size: Sizer) -> Cost:
    return Cost(entries(node.dims, size), 4 * _traffic(node, size))


RULES: dict[str, Callable[[Any, Sizer], Cost]] = {
    "Leaf": _free,
    "Table": _free,
    "Reshape": _free,
    "Broadcast": _free,
    "Detach": _free,
    "Constant": _constant,
    "Contract": _contract,
    "Add": _sum,
    "Scale": _number,
    "Map": _elementwise(lambda node: _operations(node.fn) + 1),
    "Reduce": _reduce,
    "Take": _move,
    "Put": _move,
    "Transform": _transform,
    "Solve": _solve,
    "Cholesky": _cholesky,
    "Draw": _draw,
    "TopK": _largest,
}
"""One rule per primitive."""
