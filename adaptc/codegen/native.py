"""Which steps of a plan the compiled CPU kernels of `csrc/` do, and their text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, prod

from adaptc.codegen.product import groups
from adaptc.codegen.types import Types
from adaptc.ir.dims import Dim
from adaptc.ir.expr import Expr
from adaptc.ir.prims import Contract, Draw

DTYPES = ("float32", "bfloat16")
SMALL = (2, 4, 8)  # rows and columns of a block that is worth repeating
SOLVED = 64  # rows of a matrix: systems with more are as fast in blocks
TINY = 4  # rows, columns or terms of a matrix product of which there are many


@dataclass(frozen=True)
class Kernels:
    """What a machine has. blocks: are products with (p, q) blocks in a dtype faster there than torch's? ready: can all
    other kernels be called? together: can many small steps be one call?"""

    blocks: Callable[[int, int, str], bool]
    ready: Callable[[], bool]
    together: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class BlockStep:
    """A product with blocks along the diagonal. kind "apply": x (m, g, p), R (g, p, q) or, transposed, (g, q, p) ->
    (m, g, q). kind "gradient": x (m, g, p), gy (m, g, q) -> (g, p, q). order: the axes of the result in the node's own
    order, None where they agree. shared: g, where all blocks are one and R has no axis for them. turned: the axes of R,
    where they are in another order. block: (p, q)."""

    kind: str
    x: Expr
    other: Expr
    transposed: bool
    order: tuple[int, ...] | None
    block: tuple[Dim, Dim]
    shared: int | None = None
    turned: tuple[int, ...] | None = None

    def text(self, x: str, other: str, dtype: str) -> str:
        """The call, in the node's own axis order."""
        if self.shared is not None:
            other = f"{other}.expand({self.shared}, -1, -1)"
        if self.turned is not None:
            other = f"{other}.permute({', '.join(map(str, self.turned))})"
        if self.kind == "apply":
            call = f"native.blocks_apply({x}, {other}{', True' if self.transposed else ''})"
        else:
            call = f"native.blocks_gradient({x}, {other}, torch.{dtype})"
        return call if self.order is None else f"{call}.permute({', '.join(map(str, self.order))})"


def draws_natively(e: Draw, types: Types, kernels: Kernels | None) -> bool:
    """Are these random numbers drawn by the compiled kernel?"""
    return kernels is not None and types[e] in DTYPES and bool(e.size) and kernels.ready()


def block_step(e: Contract, types: Types, kernels: Kernels | None) -> BlockStep | None:
    """The compiled form of a product, where it is one of these, its dtypes fit, and it is faster than torch's."""
    if kernels is None or len(e.operands) != 2:
        return None
    for first, second in ((0, 1), (1, 0)):
        step = _apply(e, first, second, types) or (_gradient(e, types) if first == 0 else None)
        if step is not None:
            p, q = step.block
            whole = isinstance(p, int) and isinstance(q, int)
            return step if whole and kernels.blocks(p, q, types[step.x]) else None
    return None


def by_memory(e: Contract, types: Types, kernels: Kernels | None) -> str | None:
    """The letters of a product that takes its operands' traffic, not its arithmetic, and that torch takes long for: one
    that sums and is no matrix product, or many small ones. None for any other, or without a kernel."""
    if kernels is None or len(e.operands) != 2:
        return None
    found = [types[t] for t in (e, *e.operands)]
    if not all(d in DTYPES for d in found) and found != ["complex64"] * 3:
        return None
    g, (inputs, out) = groups(e), e.terms
    if not g.summed or not e.dims or not all(t.dims for t in e.operands):
        return None
    real = types[e] in DTYPES  # complex ones are many small ones: one for each frequency
    if (g.left or g.right) and not (
        g.batch and (not real or min(_extent(e, c) for c in (g.left, g.summed, g.right)) <= TINY)
    ):
        return None
    return f"{','.join(inputs)}->{out}" if kernels.ready() else None


def _extent(e: Contract, letters: str) -> float:
    """How many entries some indices go through; tokens are many."""
    inputs, _ = e.terms
    sizes = {c: d for t, op in zip(inputs, e.operands, strict=True) for c, d in zip(t, op.dims, strict=True)}
    return prod(d if isinstance(d, int) else inf for d in (sizes[c] for c in letters))


def _apply(e: Contract, first: int, second: int, types: Types) -> BlockStep | None:
    g, (inputs, out) = groups(e), e.terms
    alone, right = (g.left, g.right) if first == 0 else (g.right, g.left)
    shared = None
    if not g.batch and len(alone) == 2 and g.summed and e.operands[first].ndim == 3:  # the same block everywhere
        x = e.operands[first]
        alone, g, shared = inputs[first][0], replace(g, batch=inputs[first][1]), x.dims[1]
        if x.dims[2] not in SMALL or e.operands[second].dims != (x.dims[2], x.dims[2]) or not isinstance(shared, int):
            return None
    if not all(len(letters) == 1 for letters in (g.batch, g.summed, alone, right)):
        return None
    if inputs[first] != alone + g.batch + g.summed or types[e] not in DTYPES:
        return None
    if types[e.operands[first]] != types[e]:
        return None
    some = "" if shared else g.batch
    known = {some + g.summed + right: False, some + right + g.summed: True}
    turned = None
    if inputs[second] not in known:  # R in any order, if it is clear which operand R is
        if shared or isinstance(e.operands[first].dims[0], int):
            return None
        last = right if inputs[second].endswith(g.summed) else g.summed
        asked = g.batch + last + (g.summed if last == right else right)
        turned = tuple(inputs[second].index(c) for c in asked)
    transposed = known.get(inputs[second], inputs[second].endswith(g.summed))
    sizes = dict(zip(inputs[second], e.operands[second].dims, strict=True))
    order = _order(alone + g.batch + right, out)
    block = sizes[g.summed], sizes[right]
    return BlockStep("apply", e.operands[first], e.operands[second], transposed, order, block, shared, turned)


def _gradient(e: Contract, types: Types) -> BlockStep | None:
    g, (inputs, out) = groups(e), e.terms
    if not all(len(letters) == 1 for letters in (g.batch, g.summed, g.left, g.right)):
        return None
    if inputs != [g.summed + g.batch + g.left, g.summed + g.batch + g.right]:
        return None
    x, gy = e.operands
    if types[x] != types[gy] or types[x] not in DTYPES or types[e] not in DTYPES:
        return None
    return BlockStep("gradient", x, gy, False, _order(g.batch + g.left + g.right, out), (x.dims[2], gy.dims[2]))


def _order(have: str, want: str) -> tuple[int, ...] | None:
    return None if have == want else tuple(have.index(c) for c in want)
