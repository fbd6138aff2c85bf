"""Tile programs as Triton."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import sympy

from adaptc.codegen.lower import SHORT
from adaptc.codegen.tile import (
    SPLITS,
    WHOLE,
    Axis,
    Between,
    Cast,
    Compute,
    Context,
    Dot,
    Fill,
    Fold,
    Kernel,
    Largest,
    Load,
    Loop,
    Place,
    Random,
    Span,
    Step,
    Store,
    System,
    Value,
    Where,
    every,
    has_tokens,
)
from adaptc.codegen.tiles import Tiles, names_of, scalars_of
from adaptc.codegen.triton_text import Functions, Places
from adaptc.ir.dims import TOKENS, Dim

UNROLLED = 8
STEPS = 2**24
_TYPES = {
    "float32": "tl.float32",
    "float64": "tl.float64",
    "bfloat16": "tl.bfloat16",
    "float16": "tl.float16",
    "int64": "tl.int64",
}


class _Body:
    """The lines of one kernel."""

    def __init__(self, kernel: Kernel, tiles: Tiles) -> None:
        self.kernel, self.tiles = kernel, tiles
        self.lines: list[str] = []
        self.margin = "    "
        self.scalars: dict[Any, str] = {TOKENS: "rows", SPLITS: "splits"}
        self.size = {b.name: b.shape for b in kernel.buffers}

    def line(self, text: str) -> None:
        """One line."""
        self.lines.append(self.margin + text)

    def place(self, at: sympy.Expr, context: Context) -> str:
        """An index."""
        return str(Places(context, self.scalars).doprint(at))

    def count(self, d: Dim) -> str:
        """A size."""
        return self.place(sympy.sympify(d), (None, None))

    def shape(self, value: Value) -> str:
        """The shape of a whole tile in the context of a value."""
        return "".join(f"{a.tile}, " for a in value.context if a is not None)[:-1]

    def uneven(self, axis: Axis | None) -> bool:
        """Does the last tile along a variable reach beyond its extent?"""
        if axis is None or not axis.tile:
            return False
        return not isinstance(axis.extent, int) or axis.extent % self.tiles[axis.tile] != 0

    def mask(self, axes: Sequence[Axis | None], within: Sequence[Between], context: Context) -> str:
        """The condition that an entry is inside, or nothing."""
        parts = []
        for axis in axes:
            if axis is not None and self.uneven(axis):
                wide = self.is_wide(axis)
                place = self.place(_lane(axis) if wide else axis.symbol, context)
                parts.append(f"({place} < {f'{axis.name}_n' if wide else self.count(axis.extent)})")
        for b in within:
            at = self.place(b.index, context)
            parts.append(f"({at} >= {b.low})" if b.low else "")
            parts.append(f"({at} < {self.count(b.high)})")
            parts.append(f"(({at} - {b.low}) % {b.step} == 0)" if b.step > 1 else "")
        return " & ".join(p for p in parts if p)

    def along(self, value: Value) -> list[Axis | None]:
        """The variables along which a value differs."""
        return [a for a, yes in zip(value.context, value.along, strict=True) if yes]

    # ------------------------------------------------------------------ steps

    def write(self, steps: Sequence[Step]) -> None:
        """Every step, in order."""
        for s in steps:
            getattr(self, f"_{type(s).__name__.lower()}")(s)

    def _load(self, s: Load) -> None:
        context = s.out.context
        mask = self.mask(self.along(s.out), s.within, context)
        inside = f", mask={mask}, other=0" if mask else ""
        self.line(f"{s.out.name} = tl.load({s.buffer} + {self.spread(s.at, self.along(s.out), context)}{inside})")

    def spread(self, at: sympy.Expr, axes: Sequence[Axis | None], context: Context) -> str:
        """A place, along some variables even where it is the same for all of their values. Along tokens the first place
        of a tile is one 64-bit number, and what is added for the others has 32 bits."""
        found = [a for a in axes if a is not None]
        same = [a for a in found if not at.has(a.symbol)]
        first = []
        for a in found:
            step = at.coeff(a.symbol, 1)
            if self.is_wide(a) and step.is_Integer and not sympy.expand(at - step * a.symbol).has(a.symbol):
                first.append(f"{step} * {a.name}_0" if step != 1 else f"{a.name}_0")
                at = at.xreplace({a.symbol: _lane(a)})
        lanes = [self.place(_lane(a) if self.is_wide(a) else a.symbol, context) for a in same]
        rest = " + ".join([self.place(at, context), *(f"0 * {lane}" for lane in lanes)])
        return " + ".join([*first, f"({rest})"])

    def _compute(self, s: Compute) -> None:
        text = str(Functions(s.out.dtype).doprint(s.fn))
        self.line(f"{s.out.name} = " + (f"tl.full((), {text}, {_TYPES[s.out.dtype]})" if s.fn.is_number else text))

    def _place(self, s: Place) -> None:
        at = self.place(s.at, s.out.context)
        self.line(f"{s.out.name} = tl.full((), 0.0, {_TYPES[s.out.dtype]}) + ({at})")

    def _cast(self, s: Cast) -> None:
        self.line(f"{s.out.name} = {s.value.name}.to({_TYPES[s.out.dtype]})")

    def _where(self, s: Where) -> None:
        mask = self.mask(s.axes, s.within, s.out.context)
        other = {float("inf"): "float('inf')", float("-inf"): "float('-inf')"}.get(s.other, repr(s.other))
        self.line(f"{s.out.name} = " + (f"tl.where({mask}, {s.value.name}, {other})" if mask else s.value.name))

    def _random(self, s: Random) -> None:
        context = s.out.context
        row, place = (f"tl.full((), 0, tl.int64) + ({self.place(a, context)})" for a in (s.row, s.place))
        self.line(f"{s.out.name} = bits({s.seed}, {s.stream}, {row}, {place})")
        text = f"{s.out.name}.to({_TYPES[s.out.dtype]}) * {1 / STEPS!r}"
        if s.drop is not None:
            text = f"({s.out.name} >= {round(s.drop * STEPS)}).to({_TYPES[s.out.dtype]})"
        self.line(f"{s.out.name} = {text}")

    def _fill(self, s: Fill) -> None:
        number = "float('-inf')" if s.number == float("-inf") else repr(s.number)
        self.line(f"{s.out.name} = tl.full(({self.shape(s.out)}), {number}, {_TYPES[s.out.dtype]})")

    def _dot(self, s: Dot) -> None:
        a, b = (self.whole(v) for v in (s.a, s.b))
        precise = ', input_precision="ieee"' if s.a.dtype not in SHORT else ""
        precise += ", out_dtype=tl.float64" if s.a.dtype == "float64" else ""
        self.line(f"{s.out.name} = tl.dot({a}, {b}, {s.out.name}{precise})")

    def whole(self, value: Value) -> str:
        """A value along rows and columns both."""
        missing = [a for a, yes in zip(value.context, value.along, strict=True) if a is not None and not yes]
        return f"tl.broadcast_to({value.name}, ({self.shape(value)}))" if missing else value.name

    def _fold(self, s: Fold) -> None:
        text = s.value.name
        if s.columns:
            text = f"tl.{s.op}({self.whole(s.value)}, 1)"
        out = s.out.name
        self.line(f"{out} = {out} + {text}" if s.op == "sum" else f"{out} = tl.maximum({out}, {text})")

    def _store(self, s: Store) -> None:
        context = s.value.context
        mask = self.mask(context, (), context)
        inside = f", mask={mask}" if mask else ""
        at = self.spread(s.at, context, context)
        call = "tl.atomic_add" if s.adds else "tl.store"
        self.line(f"{call}({s.buffer} + {at}, {s.value.name}{inside})")

    def _span(self, s: Span) -> None:
        self.line(f"{s.axis.name} = tl.arange(0, {s.axis.tile})")

    def _system(self, s: System) -> None:
        a, b = (self.whole(v) for v in (s.a, s.b))
        self.line(f"{s.out.name} = solve({a}, {b}, {s.size}, {WHOLE})")

    def _largest(self, s: Largest) -> None:
        self.line(f"{s.out.name} = largest({self.whole(s.value)}, {s.count}, {s.size}, {WHOLE})")

    def _loop(self, s: Loop) -> None:
        axis, extent = s.axis, self.count(s.axis.extent)
        if axis.part:
            self.line(f"last = min((s + 1) * part, {extent})")
            start, stop = "s * part", "last"
        else:
            start, stop = "0", extent
        if axis.tile:
            self.line(f"for {axis.name}_0 in range({start}, {stop}, {axis.tile}):")
        else:
            short = isinstance(axis.extent, int) and axis.extent <= UNROLLED and not axis.part
            self.line(f"for {axis.name} in {'tl.static_range' if short else 'range'}({start}, {stop}):")
        outer, self.margin = self.margin, self.margin + "    "
        if axis.tile and self.is_wide(axis):
            self.run(axis, f"tl.full((), 0, tl.int64) + {axis.name}_0")
        elif axis.tile:
            self.line(f"{axis.name} = {axis.name}_0 + tl.arange(0, {axis.tile})")
        self.write(s.body)
        self.margin = outer

    def sizes(self) -> list[Any]:
        """Extents of variables, and places in memory."""
        steps = every(self.kernel.body)
        axes = [*self.kernel.grid, *(s.axis for s in steps if isinstance(s, Loop))]
        return [*(a.extent for a in axes), *(s.at for s in steps if isinstance(s, (Load, Store)))]

    def multiplies(self, d: Dim) -> bool:
        """Is the number of tokens multiplied with anything?"""
        return any(isinstance(t, sympy.Mul) and t.has(TOKENS) for t in sympy.preorder_traversal(sympy.sympify(d)))

    def is_wide(self, axis: Axis) -> bool:
        """Do places need 64 bits along a variable?"""
        return bool(axis.tile) and has_tokens(axis.extent)

    def run(self, axis: Axis, first: str) -> None:
        """The places along a tile of a variable that needs 64 bits: the first, how many are left, those of the tile."""
        name = axis.name
        self.line(f"{name}_0 = {first}")
        self.line(f"{name}_n = tl.minimum({self.count(axis.extent)} - {name}_0, {axis.tile}).to(tl.int32)")
        self.line(f"{name}_t = tl.arange(0, {axis.tile})")
        self.line(f"{name} = {name}_0 + {name}_t")

    def head(self) -> None:
        """Which tile a program has. Products of the number of tokens have 64 bits."""
        if any(self.multiplies(d) for d in self.sizes()):
            self.line("rows = tl.full((), 0, tl.int64) + rows")
        self.line("at = tl.program_id(0)")
        for axis in reversed(self.kernel.grid):
            last = axis is self.kernel.grid[0]
            tiles = f"tl.cdiv({self.count(axis.extent)}, {axis.tile})" if axis.tile else self.count(axis.extent)
            mine = "at" if last else f"(at % {tiles})"
            if self.is_wide(axis):
                self.run(axis, f"{mine}.to(tl.int64) * {axis.tile}")
            elif axis.tile:
                self.line(f"{axis.name} = {mine} * {axis.tile} + tl.arange(0, {axis.tile})")
            else:
                self.line(f"{axis.name} = {mine}")
            if not last:
                self.line(f"at = at // {tiles}")


def _lane(axis: Axis) -> sympy.Symbol:
    """The place inside of its tile."""
    return sympy.Symbol(f"{axis.name}_t", integer=True, nonnegative=True)


_RUN = re.compile(r"\s*(\w+) = \1_0 \+ \1_t")


def _read(lines: Sequence[str]) -> list[str]:
    """The lines without the 64-bit places that nothing reads."""
    words = Counter(word for line in lines for word in re.findall(r"\w+", line))
    found = [(line, _RUN.fullmatch(line)) for line in lines]
    return [line for line, run in found if run is None or words[run.group(1)] > 1]


def render(kernel: Kernel, name: str, tiles: Tiles) -> str:
    """The text of a kernel."""
    body = _Body(kernel, tiles)
    body.head()
    body.write(kernel.body)
    given = [*(b.name for b in kernel.buffers), *scalars_of(kernel)]
    given += [f"{t}: tl.constexpr" for t in names_of(kernel)]
    note = f'    """{kernel.note}"""\n' if kernel.note else ""
    return f"@triton.jit\ndef {name}({', '.join(given)}):\n{note}" + "\n".join(_read(body.lines)) + "\n"
