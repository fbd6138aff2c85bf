"""Layers that are fed one x: their products with it, computed as one.

An equation is taken apart: y = f(P, x, leaves) with projections P = x E^T, E (r, k) of parameters alone, r well below
k. The projections of several layers are one equation, P = x (E_1; E_2; ...)^T, and what is left of each is an equation
that is given its P. Both are planned and differentiated as any other.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from adaptc.equation import GivenSpec
from adaptc.errors import PlanError
from adaptc.ir.build import add, contract, put, refold, transpose_last
from adaptc.ir.dims import TOKENS
from adaptc.ir.expr import Expr, postorder, substitute
from adaptc.ir.prims import INDEX, Contract, Detach, Draw, Leaf
from adaptc.method import x_leaf
from adaptc.plan.device import device
from adaptc.plan.evaluate import evaluate
from adaptc.plan.plan import CALL_ROLES, NOMINAL, TOKEN_ROLES
from adaptc.plan.search import plan
from adaptc.runtime.planning import ITEMS, Signature, planned, planned_as, task_of
from adaptc.runtime.program import Program, backward_slowly, build
from adaptc.runtime.stack import Stack

NARROW = 4  # a projection has at most a quarter of the columns of x
PRICE = 4e-5  # seconds that a layer takes to go with others, beside its products; a GPU works meanwhile


@dataclass(frozen=True, eq=False)
class Apart:
    """A layer's equation, its projections apart. rest: y, given the projections. weights: each E (r, k), over the
    arguments of `stack`. needs: the positions of those they read. wanted: does a projection want a gradient?"""

    stack: Stack
    signature: Signature
    device: str
    rest: Stack
    weights: tuple[Expr, ...]
    needs: tuple[int, ...]
    wanted: bool

    @property
    def widths(self) -> list[int]:
        """Columns of each projection."""
        return [int(E.dims[0]) for E in self.weights]

    @functools.cached_property
    def whole(self) -> Signature:
        """The signature of the rest."""
        dtypes, wants = self.signature
        count = len(self.weights)
        return (*dtypes, *dtypes[:1] * count), (*wants, *(self.wanted,) * count)


@functools.lru_cache(maxsize=1024)
def apart(stack: Stack, signature: Signature, device: str) -> Apart | None:
    """The projections of a layer and the rest; None where it has none, or a limit on what it keeps."""
    if stack.max_saved is not None:
        return None
    y, found = _projected(stack, signature, device)
    if not found:
        return None
    leaves = [Leaf(f"given.projection.{j}", (TOKENS, E.dims[0]), "given") for j, (E, _) in enumerate(found.values())]
    given = {e: p if right else transpose_last(p) for (e, (_, right)), p in zip(found.items(), leaves, strict=True)}
    specs = tuple(GivenSpec(p, "call", None, "") for p in leaves)
    rest = replace(stack, output=refold(substitute(y, given)), given=(*stack.given, *specs))
    weights = tuple(E for E, _ in found.values())
    read = set(postorder(*weights))
    needs = tuple(j for j, a in enumerate(stack.arguments) if a in read)
    wanted = any(signature[1][j] for j in (0, *needs))
    return _keeping_as_much(Apart(stack, signature, device, rest, weights, needs, wanted))


def _keeping_as_much(part: Apart) -> Apart | None:
    """The same, with nothing kept for backward but the projections and as much as the layer keeps alone, beside x."""
    dtype = part.signature[0][0]
    if not any(part.signature[1]):
        return part
    item, wide = ITEMS[dtype], 8 if dtype == "float64" else 4
    before = planned(part.stack, part.signature, part.device)
    x = int(part.stack.k) if any(e.role == "token" for e in before.read) else 0
    most = before.saved_bytes(NOMINAL, item, wide) + NOMINAL * item * (sum(part.widths) - x)
    found = replace(part, rest=replace(part.rest, max_saved=most, x_is_kept=True))
    try:
        planned(found.rest, found.whole, found.device)
    except PlanError:
        return None
    return found


Projections = dict[Expr, tuple[Expr, bool]]
"""x E^T or its transpose -> E, and whether it is the first."""


def _projected(stack: Stack, signature: Signature, device: str) -> tuple[Expr, Projections]:
    """y as planned if that has projections, else as it is without a search: applied to x, part by part. A plan no
    longer says what derivatives do not reach: such values are leaves while it is made."""
    constants: dict[Expr, Expr] = {
        e: _constant(e, j) for j, e in enumerate(postorder(stack.output)) if isinstance(e, Detach)
    }
    task = task_of(stack, signature[1], planned_as(device), dtype=signature[0][0])
    task = replace(task, y=substitute(stack.output, constants))
    y = plan(task).y
    found = _projections(y, stack)
    if not found:
        y = evaluate(task, {})[0].y
        found = _projections(y, stack)
    back = {leaf: e for e, leaf in constants.items()}
    return substitute(y, back), {substitute(e, back): (substitute(E, back), right) for e, (E, right) in found.items()}


def _constant(e: Expr, j: int) -> Leaf:
    return Leaf(f"detached.{j}", e.dims, "frozen" if _fixed(e) else "given", e.kind)


def _projections(y: Expr, stack: Stack) -> Projections:
    x = x_leaf(stack.k)
    found: Projections = {}
    for e in postorder(y):
        if isinstance(e, Contract) and len(e.operands) == 2 and x in e.operands:
            one = _of_x(e, x)
            if one is not None:
                found[e] = one
    return found


def _of_x(e: Contract, x: Leaf) -> tuple[Expr, bool] | None:
    (inputs, out), j = e.terms, e.operands.index(x)
    E, row, column, letters = e.operands[1 - j], inputs[j][0], inputs[j][1], inputs[1 - j]
    across = letters.replace(column, "")
    if len(letters) != 2 or len(across) != 1 or row in letters or set(out) != {row, across} or not _fixed(E):
        return None
    if not any(isinstance(t, Leaf) for t in postorder(E)):
        return None
    E = E if letters[1] == column else transpose_last(E)
    return (E, out[0] == row) if NARROW * int(E.dims[0]) <= int(x.dims[1]) else None


def _fixed(E: Expr) -> bool:
    """Is a value made of parameters alone?"""
    nodes = [e for e in postorder(E) if isinstance(e, (Leaf, Draw))]
    return not any(isinstance(e, Draw) or e.role in (*TOKEN_ROLES, *CALL_ROLES) for e in nodes)


@dataclass(frozen=True, eq=False)
class Joint:
    """The projections of several layers as one program of x, a placeholder for W, and the tensors that they read.

    sources: of each tensor, the layer and the position among its arguments. places: of each layer, where in the
    program's result its projections are. readers: of each tensor, the places that it has a part in.
    """

    program: Program
    sources: tuple[tuple[int, int], ...]
    widths: list[int]
    places: tuple[tuple[int, ...], ...]
    readers: tuple[frozenset[int], ...]
    wanted: bool

    def __call__(self, x: Tensor, tensors: Sequence[Tensor], differentiable: bool) -> list[tuple[Tensor, ...]]:
        """For each layer its projections (m, r) of x (..., k)."""
        tensors = (tensors[0], *tensors)  # nothing reads W
        if differentiable and self.wanted:
            found = super(torch.autograd.Function, Together).apply(self, x, *tensors)  # type: ignore[no-untyped-call]
        else:
            with torch.no_grad():
                found = torch.split(self.forward(x, tensors)[0], self.widths, 1)
        return [tuple(found[p] for p in places) for places in self.places]

    def forward(self, x: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """All projections side by side, and what is kept."""
        return self.program.forward(x.reshape(-1, x.shape[-1]), *(tensors[j - 1] for j in self.program.read))


@functools.lru_cache(maxsize=256)
def joint(parts: tuple[Apart, ...], same: tuple[tuple[int, ...], ...], rows: int) -> Joint | None:
    """One program for the projections of these layers; None where it is predicted to take longer than they take alone.
    same: of each layer, which of its needs are one tensor with others."""
    leaves: dict[int, Leaf] = {}
    sources: dict[int, tuple[int, int]] = {}
    slots: dict[Expr, int] = {}
    places = []
    for j, (part, numbers) in enumerate(zip(parts, same, strict=True)):
        names: dict[Expr, Expr] = {}
        for need, number in zip(part.needs, numbers, strict=True):
            leaf = part.stack.arguments[need]
            names[leaf] = leaves.setdefault(number, Leaf(f"{leaf.name}.{number}", leaf.size, leaf.role, leaf.of))
            sources.setdefault(number, (j, need))
        places.append(tuple(slots.setdefault(substitute(E, names), len(slots)) for E in part.weights))
    stack = _stacked(parts[0], tuple(slots), tuple(leaves.values()))
    dtypes, wants = _signature(parts, sources.values())
    program = build(stack, (dtypes, wants), parts[0].device, rows)
    if not pays(parts, program, rows):
        return None
    readers = tuple(frozenset(p for E, p in slots.items() if leaf in postorder(E)) for leaf in leaves.values())
    widths = [int(E.dims[0]) for E in slots]
    return Joint(program, tuple(sources.values()), widths, tuple(places), readers, True in wants)


def pays(parts: Sequence[Apart], program: Program, rows: int) -> bool:
    """Are the layers together predicted to be as fast as each alone?"""
    alone = sum(planned(p.stack, p.signature, p.device, rows).seconds for p in parts)
    rests = sum(planned(p.rest, p.whole, p.device, rows).seconds for p in parts)
    price = PRICE * len(parts) if device(planned_as(parts[0].device)).kind == "cpu" else 0.0
    return rests + program.plan.seconds + price <= alone


def _stacked(part: Apart, weights: Sequence[Expr], leaves: tuple[Leaf, ...]) -> Stack:
    """x (E_1; E_2; ...)^T as the equation of a layer."""
    height, k, start, rows = sum(int(E.dims[0]) for E in weights), part.stack.k, 0, []
    for E in weights:
        rows.append(put(E, (INDEX[0] + start, INDEX[1]), (height, k)))
        start += int(E.dims[0])
    y = contract("mk,nk->mn", x_leaf(k), add(*rows))
    return Stack(height, k, False, part.stack.equations, (leaves,), (), None, None, y)


def _signature(parts: Sequence[Apart], sources: Iterable[tuple[int, int]]) -> Signature:
    dtypes, wants = parts[0].signature
    found = [(parts[j].signature[0][need], parts[j].signature[1][need]) for j, need in sources]
    return (dtypes[0], found[0][0], *(d for d, _ in found)), (wants[0], False, *(w for _, w in found))


class Together(torch.autograd.Function):
    """The projections of several layers. x is kept as it came. What no layer's loss reaches has no gradient."""

    @staticmethod
    def forward(ctx: Any, joint: Joint, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        products, *kept = joint.forward(x, tensors)
        program = joint.program
        ctx.joint, ctx.shape, ctx.used = joint, x.shape, False
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*((x,) if program.saves_x else ()), *(tensors[j - 1] for j in program.saved), *kept)
        return torch.split(products, joint.widths, 1)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> Any:
        joint, saved, ctx.used = ctx.joint, ctx.saved_tensors, True
        gradients: list[Tensor | None] = [None] * (joint.program.count + 1)
        there = {p for p, g in enumerate(given) if g is not None}
        if not there:
            return tuple(gradients)
        like = next(g for g in given if g is not None)
        parts = zip(given, joint.widths, strict=True)
        gy = torch.cat([like.new_zeros(len(like), r) if g is None else g for g, r in parts], 1)
        slowly = torch.is_grad_enabled() or torch._C._is_any_autocast_enabled()
        differentiate = functools.partial(_differentiate, joint, ctx.shape)
        found = backward_slowly(gy, saved, differentiate) if slowly else differentiate(gy, *saved)
        for j, g in zip(joint.program.wrt, found, strict=True):
            reached = j == 0 or joint.readers[j - 2] & there
            gradients[j + 1] = g if reached else None
        return tuple(gradients)


def _differentiate(joint: Joint, shape: torch.Size, gy: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
    program = joint.program
    rows = (saved[0].reshape(-1, shape[-1]), *saved[1:]) if program.saves_x else saved
    found = program.backward(gy, *rows)
    return tuple(g.reshape(shape) if j == 0 else g for j, g in zip(program.wrt, found, strict=True))
