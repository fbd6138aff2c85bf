"""Whole kernels: the tiles of a result, and the program that computes one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import sympy

import adaptc.codegen.nodes  # noqa: F401  # it fills the rules
from adaptc.codegen.indices import flat, reshaped, unflat
from adaptc.codegen.lower import ONE_BY_ONE, Lowering, Places, sum_of
from adaptc.codegen.product import groups
from adaptc.codegen.tile import (
    SPLITS,
    WHOLE,
    Axis,
    Buffer,
    Compute,
    Context,
    Dot,
    Fold,
    Kernel,
    Largest,
    Span,
    Step,
    Store,
    System,
    Value,
    every,
)
from adaptc.codegen.types import Types
from adaptc.ir.dims import Dim, product
from adaptc.ir.expr import Expr
from adaptc.ir.prims import Add, Contract, Detach, Map, Put, Reshape, Scale, Solve, TopK
from adaptc.plan.plan import reach

BATCH, ROW, COLUMN, FLAT, PART, INNER = (sympy.Symbol(s, integer=True, nonnegative=True) for s in "brcfsi")
SHEET = 32  # columns
SOLVED = 64  # rows of a system that one program solves
RANKED = 1024  # entries of which one program finds the largest,
FEW = 16  # so many of them


def lower(
    root: Expr,
    path: Sequence[Expr],
    inputs: Sequence[Expr],
    types: Types,
    out_dtype: str,
    split: bool = False,
) -> Kernel:
    """The tile program of `root`. path: from what decides on the tiles (a product, a system, the largest entries) up to
    the root, all with the same entries; empty where there is no such thing. split: the root is a sum over tokens; then
    the kernel gives the sums of parts of them.

    Raises: NotTiled.
    """
    low, names = _lowering(inputs, types, root if split else None)
    grid, context, at = _space(low, root, path, split, inputs)
    value = low.value(root, at, context)
    shape, place = root.dims, at
    if split:
        shape, place = (SPLITS, *root.dims), (PART, *at)
    low.put(Store("out", flat(place, shape, low.extents), value), 0)
    return _kernel(low, names, inputs, grid, Buffer("out", shape, out_dtype, "out"))


def lower_scatter(e: Put, inputs: Sequence[Expr], types: Types) -> Kernel:
    """The program of a scatter: each entry is added to its place in zeros."""
    low, names = _lowering(inputs, types, None)
    axis = low.axis(FLAT, product(e.x.dims), "F")
    low.tiled[FLAT] = True
    context: Context = (axis, None)
    at = unflat(FLAT, e.x.dims, low.extents) if e.x.dims else ()
    value = low.value(e.x, at, context)
    place = low.looked_up(flat(low.taken(e.index, at), e.size, low.extents), context)
    low.put(Store("out", place, value, adds=True), 0)
    return _kernel(low, names, inputs, [axis], Buffer("out", e.size, low.wide, "sum"))


def _lowering(inputs: Sequence[Expr], types: Types, split: Expr | None) -> tuple[Lowering, list[str]]:
    names = [f"a{j}" for j in range(len(inputs))]
    low = Lowering(dict(zip(inputs, names, strict=True)), types, split)
    low.tables = {e: j for j, e in enumerate(inputs) if e.kind == "integer"}
    return low, names


def _kernel(low: Lowering, names: Sequence[str], inputs: Sequence[Expr], grid: Sequence[Axis], out: Buffer) -> Kernel:
    body = read_alone(low.bodies[0])
    buffers = [Buffer(n, e.dims, low.types[e]) for n, e in zip(names, inputs, strict=True)]
    return Kernel(_kind(body), (*buffers, out), tuple(grid), body)


def _space(
    low: Lowering, root: Expr, path: Sequence[Expr], split: bool, inputs: Sequence[Expr]
) -> tuple[list[Axis], Context, Places]:
    """The variables of a kernel, those of a tile, and the place of its entries in the root."""
    grid = [low.axis(PART, SPLITS)] if split else []
    if not path and not split and _is_sheet(root, inputs):
        lead = root.dims[:-1]
        row, column = _axis(low, ROW, product(lead), "R"), _axis(low, COLUMN, root.dims[-1], "C")
        return [row, column], (row, column), (*unflat(ROW, lead, low.extents), COLUMN)
    if not path:
        axis = _axis(low, FLAT, product(root.dims), "F")
        return [*grid, axis], (axis, None), unflat(FLAT, root.dims, low.extents) if root.dims else ()
    axes, at = _tiles(low, path[0])
    for below, e in zip(path, path[1:], strict=False):
        at = up(low, e, below, at)
    batch, row, column = axes
    spread = [a for a in (batch, row, column) if a.extent != 1 or a.tile]
    return [*grid, *spread], (row, column), at


def _is_sheet(root: Expr, inputs: Sequence[Expr]) -> bool:
    """Is a result as wide as a row of a tile, and made of entries, or of few of them?"""
    if root.ndim < 2 or not isinstance(root.dims[-1], int) or root.dims[-1] < SHEET:
        return False
    sums = [s for s in map(sum_of, reach([root], inputs)) if s is not None]
    return all(isinstance(s.extent, int) and s.extent <= ONE_BY_ONE for s in sums)


def _axis(low: Lowering, symbol: sympy.Symbol, extent: Dim, tile: str) -> Axis:
    low.tiled[symbol] = bool(tile)
    return low.axis(symbol, extent, tile)


def _tiles(low: Lowering, anchor: Expr) -> tuple[tuple[Axis, Axis, Axis], Places]:
    """Batch, rows and columns of what decides on the tiles, and its entries."""
    if isinstance(anchor, Solve):
        *lead, b, q = anchor.dims
        axes = (
            _axis(low, BATCH, product(tuple(lead)), ""),
            _axis(low, ROW, b, WHOLE),
            _axis(low, COLUMN, q, "C"),
        )
        low.anchored[anchor] = _system
        return axes, (*(unflat(BATCH, tuple(lead), low.extents) if lead else ()), ROW, COLUMN)
    if isinstance(anchor, TopK):
        low.anchored[anchor] = _largest
        axis = anchor.axis or 0
        rest = (*anchor.dims[:axis], *anchor.dims[axis + 1 :]) if anchor.axis is not None else ()
        size = anchor.dims[axis] if anchor.axis is not None else product(anchor.dims)
        axes = (_axis(low, BATCH, 1, ""), _axis(low, ROW, product(rest), "R"), _axis(low, COLUMN, size, WHOLE))
        if anchor.axis is None:
            return axes, unflat(COLUMN, anchor.dims, low.extents)
        others = unflat(ROW, rest, low.extents) if rest else ()
        return axes, (*others[:axis], COLUMN, *others[axis:])
    assert isinstance(anchor, Contract)
    g, s = groups(anchor), sum_of(anchor)
    assert s is not None
    rows, columns = (g.left, g.right) if s.out[-1] not in g.left else (g.right, g.left)  # columns as they are stored
    places: dict[str, sympy.Expr] = {}
    found = []
    for symbol, letters, tile in ((BATCH, g.batch, ""), (ROW, rows, "R"), (COLUMN, columns, "C")):
        dims = tuple(s.sizes[c] for c in letters)
        found.append(_axis(low, symbol, product(dims), tile))
        places.update(zip(letters, unflat(symbol, dims, low.extents) if dims else (), strict=True))
    return (found[0], found[1], found[2]), tuple(places[c] for c in s.out)


def _system(low: Lowering, e: Solve, at: Places, context: Context) -> Value:
    """The solution of small systems, all of their rows in one tile."""
    inner = _axis(low, INNER, e.A.dims[-1], WHOLE)
    low.put(Span(inner), 0)
    a = low.cast(low.value(e.A, (*at[:-1], INNER), (context[0], inner)), low.wide)
    b = low.cast(low.value(e.B, at, context), low.wide)
    out = low.new(low.wide, context, (True, True), 0)
    low.put(System(out, a, b, e.A.dims[-1]), 0)
    return out


def _largest(low: Lowering, e: TopK, at: Places, context: Context) -> Value:
    """Ones at the largest entries of a row, all of it in one tile."""
    x = low.cast(low.value(e.x, at, context), low.wide)
    out = low.new(low.wide, context, (True, True), 0)
    assert context[1] is not None
    low.put(Largest(out, x, e.count, context[1].extent), 0)
    return out


def is_small_system(e: Expr) -> bool:
    """Can one program solve it?"""
    return isinstance(e, Solve) and e.kind == "real" and isinstance(e.A.dims[-1], int) and e.A.dims[-1] <= SOLVED


def is_short_choice(e: Expr) -> bool:
    """Can one program find the largest entries?"""
    if not isinstance(e, TopK) or not all(isinstance(d, int) for d in e.dims):
        return False
    size = product(e.dims) if e.axis is None else e.dims[e.axis]
    return isinstance(size, int) and size <= RANKED and e.count <= FEW


def up(low: Lowering, e: Expr, below: Expr, at: Places) -> Places:
    """The place in a node of an entry of its operand, where both have the same entries."""
    if isinstance(e, Reshape):
        return reshaped(at, below.dims, e.size, low.extents)
    if isinstance(e, Contract):
        inputs, out = e.terms
        letters = inputs[next(j for j, op in enumerate(e.operands) if op is below)]
        places = dict(zip(letters, at, strict=True))
        return tuple(places[c] for c in out)
    return at


def keeps_entries(e: Expr, below: Expr) -> bool:
    """Has a node one entry for every entry of an operand, each made of that one?"""
    if isinstance(e, (Reshape, Detach, Scale, Add)):
        return True
    if isinstance(e, Map):
        return e.dims == below.dims
    if isinstance(e, Contract) and sum_of(e) is None:
        inputs, out = e.terms
        return any(op is below and set(t) == set(out) for op, t in zip(e.operands, inputs, strict=True))
    return False


def read_alone(body: Sequence[Step]) -> tuple[Step, ...]:
    """The steps of which something is read."""
    read = {name for s in every(tuple(body)) for name in _names(s)}
    kept = [s for s in body if not isinstance(s, Compute) or s.out.name in read]
    return tuple(kept) if len(kept) == len(body) else read_alone(kept)


def _names(s: Step) -> set[str]:
    """The values that a step reads."""
    if isinstance(s, Compute):
        return {symbol.name for symbol in s.fn.free_symbols}
    fields = [getattr(s, f.name) for f in dataclasses.fields(s) if f.name != "out"]
    symbols = [b.index for b in getattr(s, "within", ())]
    symbols += [f for f in fields if isinstance(f, sympy.Expr)]
    return {f.name for f in fields if isinstance(f, Value)} | {s.name for f in symbols for s in f.free_symbols}


KINDS: tuple[tuple[type, str], ...] = (
    (System, "system"),
    (Largest, "choice"),
    (Dot, "product"),
    (Fold, "reduction"),
)


def _kind(body: tuple[Step, ...]) -> str:
    """What a kernel mainly does."""
    steps = every(body)
    if any(isinstance(s, Store) and s.adds for s in steps):
        return "scatter"
    return next((name for cls, name in KINDS if any(isinstance(s, cls) for s in steps)), "elementwise")
