"""Reverse-mode derivatives over the primitives, as expressions: `gy` -> gradients in the forward's own terms.

Convention for complex tensors as in torch: the cotangent of z is dL/dRe z + i dL/dIm z, so a linear map's rule is
its conjugate transpose. A real tensor takes the real part of what reaches it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from string import ascii_letters
from typing import Any

import sympy

from adaptc.ir.build import (
    add,
    apply,
    batched,
    broadcast,
    conj,
    constant,
    contract,
    put,
    real,
    reduce_sum,
    reshape,
    scale,
    take,
    times,
    transform,
    transpose_last,
)
from adaptc.ir.expr import Expr, postorder
from adaptc.ir.functions import ARGS, direction, magnitude
from adaptc.ir.prims import (
    INDEX,
    Broadcast,
    Cholesky,
    Contract,
    Map,
    Reduce,
    Solve,
    Transform,
    only,
)

Pairs = list[tuple[Expr, Expr]]


def vjp(root: Expr, cotangent: Expr, wrt: Sequence[Expr]) -> dict[Expr, Expr]:
    """Gradients of <root, cotangent> for the nodes `wrt`; a node that does not reach root has none."""
    order = postorder(root)
    reaches = set(wrt)
    for node in order:
        if any(c in reaches for c in node.children):
            reaches.add(node)
    grads: dict[Expr, Expr] = {root: cotangent}
    for node in reversed(order):
        if node not in grads or node not in reaches:
            continue
        for child, g in RULES[only(type(node))](node, grads[node]):  # type: ignore[arg-type]
            if child in reaches:
                g = real(g) if child.kind == "real" else g
                grads[child] = add(grads[child], g) if child in grads else g
    return {leaf: grads[leaf] for leaf in wrt if leaf in grads}


def _nothing(node: Any, g: Expr) -> Pairs:
    return []


def _contract(node: Contract, g: Expr) -> Pairs:
    inputs, out = node.terms
    pairs = []
    for j, op in enumerate(node.operands):
        rest = [(t, conj(o)) for i, (t, o) in enumerate(zip(inputs, node.operands, strict=True)) if i != j]
        spec = ",".join([out, *(t for t, _ in rest)]) + "->" + inputs[j]
        pairs.append((op, contract(spec, g, *(o for _, o in rest))))
    return pairs


def _map(node: Map, g: Expr) -> Pairs:
    if node.fn.has(sympy.re):
        return [(node.args[0], g)]
    if node.fn.has(sympy.conjugate):
        return [(node.args[0], conj(g))]
    pairs = []
    for symbol, arg in zip(ARGS, node.args, strict=False):
        slope = _slope(node.fn, symbol)
        if slope == 0 or arg.kind == "integer":
            continue
        part = scale(float(slope), g) if slope.is_number else times(apply(slope, *node.args), g)
        pairs.append((arg, part if arg.ndim == node.ndim else reduce_sum(part, range(node.ndim))))
    return pairs


@functools.lru_cache(maxsize=4096)
def _slope(fn: sympy.Expr, symbol: sympy.Symbol) -> Any:
    return sympy.diff(fn, symbol)


def _reduce(node: Reduce, g: Expr) -> Pairs:
    kept = [j for j in range(node.x.ndim) if j not in node.axes]
    if node.op == "sum":
        return [(node.x, broadcast(g, node.x.dims, kept))]
    top = broadcast(node, node.x.dims, kept)  # max: ties share the gradient, as torch.amax
    hits = apply(1 - direction(magnitude(ARGS[0] - ARGS[1])), node.x, top)
    letters = ascii_letters[: node.x.ndim]
    lost = "".join(letters[j] for j in kept)
    each = times(g, apply(1 / ARGS[0], reduce_sum(hits, node.axes)))
    return [(node.x, contract(f"{letters},{lost}->{letters}", hits, each))]


def _transform(node: Transform, g: Expr) -> Pairs:
    n = node.dims[node.axis]
    if node.name == "hadamard":
        return [(node.x, transform("hadamard", g, node.axis))]
    if node.name == "fft":
        return [(node.x, scale(n, transform("ifft", g, node.axis)))]
    return [(node.x, scale(sympy.Integer(1) / n, transform("fft", g, node.axis)))]


def _solve(node: Solve, g: Expr) -> Pairs:
    gB = Solve(transpose_last(conj(node.A)), g)
    return [(node.B, gB), (node.A, scale(-1, batched("...ij,...kj->...ik", gB, conj(node))))]


def _cholesky(node: Cholesky, g: Expr) -> Pairs:
    """A = L L^T: gA = sym(L^-T Phi(L^T gL) L^-1), Phi halves the diagonal and keeps the lower triangle."""
    half = constant(sympy.Heaviside(INDEX[0] - INDEX[1], sympy.Rational(1, 2)), node.dims[-2:])
    inner = batched("...ij,ij->...ij", batched("...ki,...kj->...ij", node, g), half)
    upper = transpose_last(node)
    middle = Solve(upper, transpose_last(Solve(upper, inner)))
    return [(node.A, scale(0.5, add(middle, transpose_last(middle))))]


def _broadcast(node: Broadcast, g: Expr) -> Pairs:
    return [(node.x, reduce_sum(g, [j for j in range(node.ndim) if j not in node.axes]))]


RULES: dict[str, Callable[[Any, Expr], Pairs]] = {
    "Leaf": _nothing,
    "Constant": _nothing,
    "Table": _nothing,
    "Detach": _nothing,
    "Draw": _nothing,
    "TopK": _nothing,
    "Contract": _contract,
    "Add": lambda node, g: [(t, g) for t in node.terms],
    "Scale": lambda node, g: [(node.x, scale(node.factor, g))],
    "Map": _map,
    "Reduce": _reduce,
    "Broadcast": _broadcast,
    "Reshape": lambda node, g: [(node.x, reshape(g, node.x.dims))],
    "Take": lambda node, g: [(node.x, put(g, node.index, node.x.dims))],
    "Put": lambda node, g: [(node.x, take(g, node.index, node.x.dims))],
    "Transform": _transform,
    "Solve": _solve,
    "Cholesky": _cholesky,
}
"""One rule per primitive: cotangent of the result -> cotangents of the operands."""
