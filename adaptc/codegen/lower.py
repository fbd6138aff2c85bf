"""From an expression and the tensors it is computed from to a tile program.

Every entry of the result is followed down to the entries it is made of: what only moves entries becomes a place to load
from, what is elementwise is computed where it is needed, and sums become loops: products of tiles where the rows of the
result come from one operand and its columns from the other, else sums along the columns of a tile, or one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, TypeAlias

import sympy

from adaptc.codegen.indices import NotTiled, flat, folded, lookup, moved, reshaped, unflat
from adaptc.codegen.tile import (
    Axis,
    Between,
    Cast,
    Compute,
    Context,
    Dot,
    Fill,
    Fold,
    Load,
    Loop,
    Place,
    Step,
    Value,
    Where,
)
from adaptc.codegen.types import Types
from adaptc.ir.dims import Dim, product
from adaptc.ir.expr import Expr
from adaptc.ir.functions import ARGS
from adaptc.ir.prims import (
    Add,
    At,
    Contract,
    Index,
    Map,
    Reduce,
    Reshape,
    Scale,
    Take,
)

SHORT = ("bfloat16", "float16")
LEAST = 8  # terms of a product of tiles
ONE_BY_ONE = 16  # terms of a sum that are added without a tile of their own
Places: TypeAlias = tuple[sympy.Expr, ...]
Within: TypeAlias = tuple[Between, ...]


Rule: TypeAlias = Callable[["Lowering", Any, Places, Context, Within], Value]
RULES: dict[type[Expr], Rule] = {}
"""Nodes that do not sum; filled in `nodes`."""


@dataclass(frozen=True)
class Sum:
    """The terms of a sum: operands with their letters, the letters of the result, and of what is summed."""

    operands: tuple[tuple[Expr, str], ...]
    out: str
    summed: str
    sizes: Mapping[str, Dim]
    op: str = "sum"

    @property
    def extent(self) -> Dim:
        """The number of terms."""
        return product(tuple(self.sizes[c] for c in self.summed))


def sum_of(e: Expr) -> Sum | None:
    """A contraction that sums, or a reduction."""
    if isinstance(e, Reduce):
        letters = "abcdefghijkl"[: e.x.ndim]
        summed = "".join(letters[j] for j in sorted(e.axes))
        out = "".join(c for c in letters if c not in summed)
        return Sum(((e.x, letters),), out, summed, dict(zip(letters, e.x.dims, strict=True)), e.op)
    if not isinstance(e, Contract):
        return None
    inputs, out = e.terms
    sizes = {c: d for t, op in zip(inputs, e.operands, strict=True) for c, d in zip(t, op.dims, strict=True)}
    summed = "".join(c for c in sizes if c not in out)
    return Sum(tuple(zip(e.operands, inputs, strict=True)), out, summed, sizes) if summed else None


@dataclass
class Lowering:
    """Writes the steps of one kernel. buffers: the names of tensors in memory."""

    buffers: Mapping[Expr, str]
    types: Types
    split: Expr | None = None
    bodies: list[list[Step]] = field(default_factory=lambda: [[]])
    memo: list[dict[Any, Value]] = field(default_factory=lambda: [{}])
    depths: dict[sympy.Expr, int] = field(default_factory=dict)
    extents: dict[sympy.Expr, Dim] = field(default_factory=dict)
    found: dict[sympy.Expr, Value] = field(default_factory=dict)
    zero: set[str] = field(default_factory=set)
    numbers: dict[str, sympy.Expr] = field(default_factory=dict)
    made: int = 0
    loops: int = 0
    tables: dict[Expr, int] = field(default_factory=dict)
    tiled: dict[sympy.Expr, bool] = field(default_factory=dict)
    anchored: dict[Expr, Callable[[Lowering, Any, Places, Context], Value]] = field(default_factory=dict)

    @property
    def wide(self) -> str:
        """What is computed in: float32, or float64 where parameters are."""
        return self.types.wide

    # ------------------------------------------------------------------ variables, loops, values

    def axis(self, symbol: sympy.Symbol, extent: Dim, tile: str = "", part: bool = False) -> Axis:
        """A variable, known from here on."""
        self.extents[symbol] = extent
        self.depths[symbol] = len(self.bodies) - 1
        return Axis(symbol, extent, tile, part)

    @contextmanager
    def loop(self, extent: Dim, tiled: bool, part: bool = False) -> Iterator[Axis]:
        """A loop over a new variable."""
        number, self.loops = self.loops, self.loops + 1
        self.bodies.append([])
        self.memo.append({})
        symbol = sympy.Symbol(f"k{number}", integer=True, nonnegative=True)
        axis = self.axis(symbol, extent, f"K{number}" if tiled else "", part)
        self.tiled[symbol] = tiled
        yield axis
        body = tuple(self.bodies.pop())
        self.memo.pop()
        self.bodies[-1].append(Loop(axis, body))

    def new(self, dtype: str, context: Context, along: tuple[bool, bool], depth: int) -> Value:
        """A name for a tile."""
        self.made += 1
        value = Value(f"v{self.made}", dtype, context, along, depth)
        self.found[sympy.Symbol(value.name)] = value
        return value

    def put(self, step: Step, depth: int) -> None:
        """Write a step where all that it needs is known."""
        self.bodies[depth].append(step)

    def once(self, key: Any, make: Callable[[], Value]) -> Value:
        """A value that is computed once."""
        for level in self.memo:
            if key in level:
                return level[key]
        value = make()
        self.memo[min(value.depth, len(self.memo) - 1)][key] = value
        return value

    def reach(self, at: Sequence[sympy.Expr], context: Context) -> tuple[tuple[bool, bool], int]:
        """Along what an index runs, and how deep it is known. Raises NotTiled where it runs along anything else."""
        symbols: set[sympy.Expr] = set().union(*(a.free_symbols for a in at)) if at else set()
        known = [self.found[s] for s in symbols if s in self.found]
        along = tuple(
            axis is not None and (axis.symbol in symbols or any(v.along[j] for v in known))
            for j, axis in enumerate(context)
        )
        mine = {axis.symbol for axis in context if axis is not None}
        for s in symbols & self.extents.keys() - mine:
            if self.tiled.get(s):
                raise NotTiled(f"{s} does not run along this tile")
        depth = max([0, *(self.depths.get(s, 0) for s in symbols), *(v.depth for v in known)])
        return (along[0], along[1]), depth

    # ------------------------------------------------------------------ steps

    def load(self, buffer: str, at: sympy.Expr, dtype: str, context: Context, within: Within) -> Value:
        """Entries of a tensor."""
        within = self.bounded(within, context)
        at = self.looked_up(at, context, within)

        def make() -> Value:
            along, depth = self.reach([at, *(b.index for b in within)], context)
            out = self.new(dtype, context, along, depth)
            self.put(Load(out, buffer, at, within), depth)
            self.zero.add(out.name)
            return out

        return self.once(("load", buffer, at, context, within), make)

    def looked_up(self, at: sympy.Expr, context: Context, within: Within = ()) -> sympy.Expr:
        """An index with the entries of tables loaded, inside of some bounds."""
        calls = sorted(at.atoms(lookup), key=lambda c: c.count(lookup))
        by_number = {j: e for e, j in self.tables.items()}
        while calls:
            table, place = calls[0].args
            value = self.load(self.buffers[by_number[int(table)]], place, "int64", context, within)
            at = at.xreplace({calls[0]: sympy.Symbol(value.name)})
            calls = sorted(at.atoms(lookup), key=lambda c: c.count(lookup))
        return at

    def whole(self, e: Expr, at: Places) -> sympy.Expr:
        """A whole number at a place of a tensor of them, as an index."""
        if e in self.tables:
            return lookup(self.tables[e], flat(at, e.dims, self.extents))
        if isinstance(e, Take):
            return self.whole(e.x, self.taken(e.index, at))
        if isinstance(e, Reshape):
            return self.whole(e.x, reshaped(at, e.size, e.x.dims, self.extents))
        if isinstance(e, Map):
            args = [self.whole(t, at if t.dims else ()) for t in e.args]
            return folded(e.fn.xreplace(dict(zip(ARGS, args, strict=False))), self.extents)
        if isinstance(e, Add):
            return sympy.expand(sum(self.whole(t, at) for t in e.terms))
        if isinstance(e, Scale):
            return sympy.expand(sympy.nsimplify(e.factor) * self.whole(e.x, at))
        raise NotTiled(f"whole numbers by {type(e).__name__}")

    def taken(self, index: Sequence[Index], at: Places) -> Places:
        """The places that an index of a Take names."""
        return tuple(
            self.whole(i.table, (at[i.axis],)) if isinstance(i, At) else moved(i, at, self.extents) for i in index
        )

    def bounded(self, within: Within, context: Context) -> Within:
        """Bounds with the entries of tables loaded."""
        return tuple(replace(b, index=self.looked_up(b.index, context)) for b in within)

    def compute(self, fn: sympy.Expr, args: Sequence[Value], context: Context) -> Value:
        """A function of values, in float32."""
        args = [self.cast(a, self.wide) for a in args]
        if fn == ARGS[0]:
            return args[0]
        fn = fn.xreplace({ARGS[j]: self.numbers.get(a.name, sympy.Symbol(a.name)) for j, a in enumerate(args)})
        args = [a for a in args if a.name not in self.numbers]

        def make() -> Value:
            along = any(a.along[0] for a in args), any(a.along[1] for a in args)
            out = self.new(self.wide, context, along, max((a.depth for a in args), default=0))
            self.put(Compute(out, fn), out.depth)
            if fn.is_number:
                self.numbers[out.name] = fn
            return out

        return self.once(("compute", fn, context), make)

    def placed(self, at: sympy.Expr, context: Context) -> Value:
        """An index as a number."""
        at = self.looked_up(at, context)
        along, depth = self.reach([at], context)
        out = self.new(self.wide, context, along, depth)
        self.put(Place(out, at), depth)
        return out

    def cast(self, value: Value, dtype: str) -> Value:
        """The same in another dtype."""
        if value.dtype == dtype:
            return value

        def make() -> Value:
            out = self.new(dtype, value.context, value.along, value.depth)
            self.put(Cast(out, value), value.depth)
            if value.name in self.zero:
                self.zero.add(out.name)
            return out

        return self.once(("cast", value.name, dtype), make)

    def where(self, value: Value, axes: tuple[Axis, ...], within: Within, other: float, context: Context) -> Value:
        """A value inside of some bounds."""
        within = self.bounded(within, context)
        along, depth = self.reach([*(a.symbol for a in axes), *(b.index for b in within)], context)
        shape = value.along[0] or along[0], value.along[1] or along[1]
        out = self.new(value.dtype, context, shape, max(depth, value.depth))
        self.put(Where(out, value, axes, within, other), out.depth)
        return out

    # ------------------------------------------------------------------ values

    def value(self, e: Expr, at: Places, context: Context, within: Within = ()) -> Value:
        """The entries of a tensor at some places."""
        if e in self.buffers:
            return self.load(self.buffers[e], flat(at, e.dims, self.extents), self.types[e], context, within)
        if e.kind == "integer":
            return self.placed(self.whole(e, at), context)
        if e.kind != "real":
            raise NotTiled(f"{type(e).__name__} is {e.kind}")
        return self.once(("value", e, at, context, within), lambda: self._value(e, at, context, within))

    def _value(self, e: Expr, at: Places, context: Context, within: Within) -> Value:
        if e in self.anchored:
            return self.anchored[e](self, e, at, context)
        if sum_of(e) is not None:
            return self.total(e, at, context, within)
        if type(e) not in RULES:
            raise NotTiled(f"there are no tiles for {type(e).__name__}")
        return RULES[type(e)](self, e, at, context, within)

    def total(self, e: Expr, at: Places, context: Context, within: Within) -> Value:
        """A sum, or the greatest entry."""
        s = sum_of(e)
        assert s is not None
        known = dict(zip(s.out, at, strict=True))
        order = self._dot_order(s, known, context)
        if order is not None:
            return self._dot(e, s, known, order, context, within)
        if s.extent == 1:
            one = {**known, **dict.fromkeys(s.summed, sympy.Integer(0))}
            values = [self.value(op, tuple(one[c] for c in t), context, within) for op, t in s.operands]
            return self.compute(sympy.Mul(*ARGS[: len(values)]), values, context)
        few = isinstance(s.extent, int) and s.extent <= ONE_BY_ONE
        along = context[1] is None and not few
        part = e is self.split
        top = len(self.bodies) - 1
        shape = context[0] is not None, context[1] is not None
        out = self.new(self.wide, context, shape, top)
        self.put(Fill(out, 0.0 if s.op == "sum" else -inf), top)
        with self.loop(s.extent, along, part) as axis:
            inner = (context[0], axis) if along else context
            values = self._operands(s, known, axis, inner, within)
            term = self.compute(sympy.Mul(*ARGS[: len(values)]), values, inner)
            safe = s.op == "sum" and all(v.name in self.zero and v.along[1] for v in values)
            if along and not safe:
                term = self.where(term, (axis,), (), 0.0 if s.op == "sum" else -inf, inner)
            self.put(Fold(out, term, s.op, along), len(self.bodies) - 1)
        return out

    def _operands(
        self, s: Sum, known: Mapping[str, sympy.Expr], axis: Axis, context: Context, within: Within
    ) -> list[Value]:
        places = {**known, **self._summed(s, axis)}
        return [self.value(op, tuple(places[c] for c in t), context, within) for op, t in s.operands]

    def _summed(self, s: Sum, axis: Axis) -> dict[str, sympy.Expr]:
        """Where each letter that is summed stands, along one variable for all of them."""
        sizes = tuple(s.sizes[c] for c in s.summed)
        return dict(zip(s.summed, unflat(axis.symbol, sizes, self.extents), strict=True))

    def _dot_order(self, s: Sum, known: Mapping[str, sympy.Expr], context: Context) -> tuple[int, int] | None:
        """Which operand has the rows of a tile, and which its columns: where a sum is a product of tiles."""
        row, column = context
        few = isinstance(s.extent, int) and s.extent < LEAST
        if row is None or column is None or len(s.operands) != 2 or s.op != "sum" or few:
            return None
        tiles = {row.symbol, column.symbol}
        reads = []
        for _, letters in s.operands:
            symbols = set().union(*(known[c].free_symbols for c in letters if c in known), set())
            reads.append(tiles & symbols)
        if reads == [{row.symbol}, {column.symbol}]:
            return 0, 1
        return (1, 0) if reads == [{column.symbol}, {row.symbol}] else None

    def _dot(
        self,
        e: Expr,
        s: Sum,
        known: Mapping[str, sympy.Expr],
        order: tuple[int, int],
        context: Context,
        within: Within,
    ) -> Value:
        top = len(self.bodies) - 1
        out = self.new(self.wide, context, (True, True), top)
        self.put(Fill(out, 0.0), top)
        dtype = self.dot_dtype(e, [op for op, _ in s.operands])
        with self.loop(s.extent, True, e is self.split) as axis:
            places = {**known, **self._summed(s, axis)}
            both = []
            for j, inner in zip(order, ((context[0], axis), (axis, context[1])), strict=True):
                op, letters = s.operands[j]
                v = self.value(op, tuple(places[c] for c in letters), inner, within)
                if v.name not in self.zero or not v.along[inner.index(axis)]:
                    v = self.where(v, (axis,), (), 0.0, inner)
                both.append(self.cast(v, dtype))
            self.put(Dot(out, *both), len(self.bodies) - 1)
        return out

    def dot_dtype(self, e: Expr, operands: Sequence[Expr]) -> str:
        """What the tiles of a product are rounded to: as the same product is in torch."""
        if self.types[e] in SHORT:
            return self.types[e]
        found = {self.types[op] for op in operands}
        return found.pop() if len(found) == 1 and found <= set(SHORT) else self.wide
