"""What is written of a generated function: lines, the names and places of values, casts, and tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

import sympy

from adaptc.codegen.gather import slices
from adaptc.codegen.source import Tabulated
from adaptc.codegen.strided import Strided
from adaptc.codegen.types import Types
from adaptc.errors import UnsupportedError
from adaptc.ir.dims import TOKENS, Dim, Shape, show
from adaptc.ir.expr import Expr
from adaptc.ir.prims import Broadcast, Map, Take
from adaptc.ir.printer import brief

LARGE = 4096  # entries


def _is_large(shape: Shape) -> bool:
    return not all(isinstance(d, int) for d in shape) or prod(int(d) for d in shape) >= LARGE


class Writer:
    """The lines of one function, and what they call each value."""

    def __init__(self, names: dict[Expr, str], types: Types) -> None:
        self.names = dict(names)
        self.types = types
        self.lines: list[str] = []
        self.tables: list[Tabulated] = []
        self.together: list[Strided] = []
        self.places: dict[str, str] = {}
        self.given = frozenset(names.values())
        self.casts: dict[tuple[Expr, str], str] = {}
        self.fresh: set[Expr] = set()

    def let(self, e: Expr, text: str, fresh: bool = False, note: str = "") -> None:
        """Assign the value of a node."""
        self.names[e] = f"t{len(self.names)}"
        if fresh:
            self.fresh.add(e)
        self.lines.append(f"{self.names[e]} = {text}  # {show(e.dims)} {note or brief(e, 50)}")

    def let_view(self, e: Expr, text: str, of: str) -> None:
        """Assign a value that may lie where another does."""
        self.let(e, text)
        self.places[self.names[e]] = self.place(of)

    def large(self) -> set[str]:
        """The names of computed values that are worth letting go of early."""
        every = [*self.names.items(), *((e, name) for (e, _), name in self.casts.items())]
        return {name for e, name in every if name.isidentifier() and name not in self.given and _is_large(e.dims)}

    def place(self, name: str) -> str:
        """The name of the value in whose memory a value may lie."""
        return self.places.get(name, name)

    def alias(self, e: Expr, of: Expr) -> None:
        """A node whose value is another's."""
        self.names[e] = self.names[of]

    def cast(self, e: Expr, dtype: str) -> str:
        """The name of a node's value in a dtype."""
        have = self.types[e]
        if have == dtype:
            return self.names[e]
        if (
            (e, dtype) not in self.casts and isinstance(e, Broadcast) and e.x in self.names
        ):  # cast the few entries, then repeat them
            self.casts[e, dtype] = f"{self.names[e]}_{dtype}"
            self.lines.append(f"{self.casts[e, dtype]} = {self.repeated(e, self.cast(e.x, dtype))}")
        if (e, dtype) not in self.casts:
            name = f"{re.sub(r'[^0-9A-Za-z_]', '', self.names[e])}_{dtype}"
            self.casts[e, dtype] = name
            text = (
                f"torch.real({self.names[e]})"
                if have.startswith("complex") and dtype[:7] != "complex"
                else self.names[e]
            )
            self.lines.append(f"{name} = {text}.to(torch.{dtype})")
        return self.casts[e, dtype]

    def apart(self, results: Sequence[Expr], values: Sequence[str]) -> list[str]:
        """Results that stay alive on their own: no two in one place, none in an argument's, and no slices or real
        parts, which would hold all that they were cut from."""
        taken: set[str] = set()
        found: list[str] = []
        for e, value in zip(results, values, strict=True):
            root = self.place(value)
            cut = isinstance(e, Take) and slices(e.index, e.size) is not None
            cut |= isinstance(e, Map) and root != value
            mine = root in taken or root in self.given or (cut and bool(found))
            found.append(f"{value}.clone()" if mine else value)
            taken.add(root)
        return found

    def dimension(self, d: Dim) -> str:
        """A size in the text: a number, or an expression of the number of rows."""
        if isinstance(d, int):
            return str(d)
        if d.free_symbols != {TOKENS}:
            raise UnsupportedError(f"no code is generated for the symbolic size {d}")
        return str(d.xreplace({TOKENS: sympy.Symbol("rows")}))

    def shape(self, shape: Sequence[Dim]) -> str:
        """A shape in the text."""
        return ", ".join(map(self.dimension, shape))

    def table(self, value: sympy.Expr | tuple[float, ...], shape: Shape, dtype: str) -> str:
        """A constant tensor, built once per device."""
        spec = Tabulated(value, shape, dtype)
        if spec not in self.tables:
            self.tables.append(spec)
        return f"tables[{self.tables.index(spec)}]"

    def repeated(self, e: Broadcast, name: str) -> str:
        """Text of a view with repeated entries."""
        ones = ", ".join(self.dimension(d) if j in e.axes else "1" for j, d in enumerate(e.size))
        return f"{name}.reshape({ones}).expand({self.shape(e.size)})"
