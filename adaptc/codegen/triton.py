"""Tile programs as Triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy

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
    has_tokens,
)
from adaptc.codegen.tiles import Tiles, names_of, scalars_of
from adaptc.codegen.triton_text import Functions, Places
from adaptc.ir.dims import TOKENS, Dim

UNROLLED = 8
STEPS = 2**24
_TYPES = {
    "float32": "tl.float32",
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
                parts.append(f"({self.place(axis.symbol, context)} < {self.count(axis.extent)})")
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
        """A place, along some variables even where it is the same for all of their values."""
        same = [a for a in axes if a is not None and not at.has(a.symbol)]
        text = " + ".join([self.place(at, context), *(f"0 * {self.place(a.symbol, context)}" for a in same)])
        return f"({text})"

    def _compute(self, s: Compute) -> None:
        self.line(f"{s.out.name} = {Functions().doprint(s.fn)}")

    def _place(self, s: Place) -> None:
        self.line(f"{s.out.name} = ({self.place(s.at, s.out.context)}).to(tl.float32)")

    def _cast(self, s: Cast) -> None:
        self.line(f"{s.out.name} = {s.value.name}.to({_TYPES[s.out.dtype]})")

    def _where(self, s: Where) -> None:
        mask = self.mask(s.axes, s.within, s.out.context)
        other = {float("inf"): "float('inf')", float("-inf"): "float('-inf')"}.get(s.other, repr(s.other))
        self.line(f"{s.out.name} = " + (f"tl.where({mask}, {s.value.name}, {other})" if mask else s.value.name))

    def _random(self, s: Random) -> None:
        context = s.out.context
        row, place = (
            f"tl.full((), {a}, tl.int64)" if a.isdigit() else f"({a})"
            for a in (self.place(s.row, context), self.place(s.place, context))
        )
        self.line(f"{s.out.name} = bits({s.seed}, {s.stream}, {row}, {place})")
        text = f"{s.out.name}.to(tl.float32) * {1 / STEPS!r}"
        if s.drop is not None:
            text = f"({s.out.name} >= {round(s.drop * STEPS)}).to(tl.float32)"
        self.line(f"{s.out.name} = {text}")

    def _fill(self, s: Fill) -> None:
        number = "float('-inf')" if s.number == float("-inf") else repr(s.number)
        self.line(f"{s.out.name} = tl.full(({self.shape(s.out)}), {number}, tl.float32)")

    def _dot(self, s: Dot) -> None:
        a, b = (self.whole(v) for v in (s.a, s.b))
        precise = ', input_precision="ieee"' if s.a.dtype == "float32" else ""
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
        if axis.tile:
            run = f"{axis.name}_0 + tl.arange(0, {axis.tile})"
            self.line(f"{axis.name} = " + (f"({run}).to(tl.int64)" if self.is_wide(axis) else run))
        self.write(s.body)
        self.margin = outer

    def is_wide(self, axis: Axis) -> bool:
        """Do places need 64 bits along a variable?"""
        return has_tokens(axis.extent)

    def head(self) -> None:
        """Which tile a program has."""
        self.line("at = tl.program_id(0)")
        for axis in reversed(self.kernel.grid):
            last = axis is self.kernel.grid[0]
            tiles = f"tl.cdiv({self.count(axis.extent)}, {axis.tile})" if axis.tile else self.count(axis.extent)
            mine = "at" if last else f"(at % {tiles})"
            if axis.tile:
                wide = f"{mine}.to(tl.int64)" if self.is_wide(axis) else mine
                self.line(f"{axis.name} = {wide} * {axis.tile} + tl.arange(0, {axis.tile})")
            else:
                self.line(f"{axis.name} = {mine}")
            if not last:
                self.line(f"at = at // {tiles}")


def render(kernel: Kernel, name: str, tiles: Tiles) -> str:
    """The text of a kernel."""
    body = _Body(kernel, tiles)
    body.head()
    body.write(kernel.body)
    given = [*(b.name for b in kernel.buffers), *scalars_of(kernel)]
    given += [f"{t}: tl.constexpr" for t in names_of(kernel)]
    note = f'    """{kernel.note}"""\n' if kernel.note else ""
    return f"@triton.jit\ndef {name}({', '.join(given)}):\n{note}" + "\n".join(body.lines) + "\n"
