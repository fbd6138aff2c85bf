"""What stands inside the steps of a Triton kernel: elementwise functions, indices, and device functions for them."""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
from sympy.printing.str import StrPrinter

from adaptc.codegen.indices import quotient, remainder
from adaptc.codegen.tile import Context
from adaptc.errors import InternalError

POWERS = 8  # that are written as products
CALLS = {
    "exp": "tl.exp({})",
    "log": "tl.log({})",
    "sin": "sine({}, 0.0)",
    "cos": "sine({}, 1.0)",
    "tanh": "tanh({})",
    "erf": "tl.erf({})",
    "sigmoid": "tl.sigmoid({})",
    "nearest": "nearest({})",
    "positive": "tl.where({} > 0, 1.0, 0.0)",
    "direction": "tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, 0.0))",
    "magnitude": "tl.abs({})",
    "larger": "tl.maximum({}, {})",
    "root": "tl.sqrt({})",
    "inverse_root": "tl.where({0} > 0, tl.rsqrt(tl.where({0} > 0, {0}, 1.0)), 0.0)",
    "floor": "tl.floor({})",
}
IN_FLOAT64 = {
    "sin": "tl.sin({})",
    "cos": "tl.cos({})",
    "positive": "tl.where({} > 0, 1.0, 0.0).to(tl.float64)",
    "direction": "tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, 0.0)).to(tl.float64)",
}
FUNCTIONS = {
    "tanh": '''@triton.jit
def tanh(x):
    """By exponentials, and by its series where they would cancel."""
    t = tl.exp(-2.0 * tl.abs(x))
    far = tl.where(x < 0, -1.0, 1.0) * (1.0 - t) / (1.0 + t)
    s = x * x
    near = x * (1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835 - s * 1382.0 / 155925)))))
    return tl.where(tl.abs(x) < 0.15, near, far)
''',
    "sine": '''@triton.jit
def sine(x, quarters):
    """sin(x + quarters pi / 2): less whole quarter turns, in three parts, then by its series."""
    turns = tl.floor(x * 0.6366197723675814 + 0.5)
    t = ((x - turns * 1.5703125) - turns * 0.0004837512969970703) - turns * 7.549789948768648e-08
    quadrant = turns + quarters - 4.0 * tl.floor((turns + quarters) * 0.25)
    s = t * t
    odd = t * (1.0 + s * (-1.6666654611e-1 + s * (8.3321608736e-3 - s * 1.9515295891e-4)))
    even = 1.0 + s * (-0.5 + s * (4.166664568298827e-2 + s * (-1.388731625493765e-3 + s * 2.443315711809948e-5)))
    value = tl.where((quadrant == 1.0) | (quadrant == 3.0), even, odd)
    return tl.where(quadrant >= 2.0, -value, value)
''',
    "nearest": '''@triton.jit
def nearest(x):
    """The nearest whole number, ties to even."""
    up = tl.floor(x + 0.5)
    odd = up - 2.0 * tl.floor(0.5 * up)
    return tl.where((up == x + 0.5) & (odd == 1.0), up - 1.0, up)
''',
    "solve": '''@triton.jit
def solve(a, b, n, P: tl.constexpr):
    """a^-1 b for the first n rows and columns of a, by elimination with row exchanges."""
    rows = tl.arange(0, P)
    for j in range(n):
        here = rows == j
        column = tl.sum(tl.where(here[None, :], a, 0.0), 1)
        size = tl.where((rows >= j) & (rows < n), tl.abs(column), -1.0)
        there = rows == tl.min(tl.where(size == tl.max(size, 0), rows, P), 0)
        pivot = tl.sum(tl.where(there, column, 0.0), 0)
        a_here, a_there = tl.sum(tl.where(here[:, None], a, 0.0), 0), tl.sum(tl.where(there[:, None], a, 0.0), 0)
        b_here, b_there = tl.sum(tl.where(here[:, None], b, 0.0), 0), tl.sum(tl.where(there[:, None], b, 0.0), 0)
        a_there, b_there = a_there / pivot, b_there / pivot
        a = tl.where(there[:, None], a_here[None, :], a)
        b = tl.where(there[:, None], b_here[None, :], b)
        factor = tl.where(here, 0.0, tl.sum(tl.where(here[None, :], a, 0.0), 1))
        a = tl.where(here[:, None], a_there[None, :], a) - factor[:, None] * a_there[None, :]
        b = tl.where(here[:, None], b_there[None, :], b) - factor[:, None] * b_there[None, :]
    return b
''',
    "largest": '''@triton.jit
def largest(x, count, n, P: tl.constexpr):
    """1 at the largest entries of each row, 0 elsewhere."""
    columns = tl.arange(0, P)[None, :]
    x = tl.where(columns < n, x, float("-inf"))
    found = tl.zeros_like(x)
    for _ in range(count):
        best = tl.max(x, 1)[:, None]
        hit = columns == tl.min(tl.where(x == best, columns, P), 1)[:, None]
        found = tl.where(hit, 1.0, found)
        x = tl.where(hit, float("-inf"), x)
    return found
''',
    "bits": '''@triton.jit
def mix(x):
    """A bijection of 32-bit numbers in which every bit depends on every other."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0x735A2D97
    return x ^ (x >> 15)


@triton.jit
def bits(seed, stream, row, place):
    """24 random bits of a row and a place in it."""
    low, high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    row = mix(mix(mix(row.to(tl.uint32) ^ low) + high) + stream)
    return mix(row ^ mix(place.to(tl.uint32) + 0x9E3779B9)) >> 8
''',
}
"""Device functions, by the word that calls for them."""


class Places(StrPrinter):
    """Indices as text: variables as rows or columns of the tile that they are read in."""

    def __init__(self, context: Context, scalars: Mapping[Any, str]) -> None:
        super().__init__()
        self.context, self.scalars = context, scalars

    def _print_Symbol(self, expr: Any) -> str:
        row, column = self.context
        name = str(expr)
        if row is not None and name.removesuffix("_t") == row.name:
            return f"{name}[:, None]" if column is not None else name
        if column is not None and name.removesuffix("_t") == column.name:
            return f"{name}[None, :]"
        return self.scalars.get(expr, name)

    def _print_quotient(self, expr: Any) -> str:
        a, b = expr.args
        return f"{self._atom(a)} // {self.parenthesize(b, 60)}"

    def _print_remainder(self, expr: Any) -> str:
        a, b = expr.args
        return f"{self._atom(a)} % {self.parenthesize(b, 60)}"

    def _atom(self, e: Any) -> str:
        text = self._print(e)
        return text if e.is_Symbol or e.is_Integer else f"({text})"

    def _print_Mul(self, expr: Any) -> str:
        parts = [
            f"({self._print(f)})" if isinstance(f, (quotient, remainder, sympy.Add)) else self._print(f)
            for f in expr.args
        ]
        return " * ".join(parts)

    def _print_Add(self, expr: Any, order: Any = None) -> str:
        whole = sympy.ilcm(1, *(t.as_coeff_Mul()[0].q for t in expr.args))
        if whole > 1:
            return f"({self._print(sympy.expand(expr * whole))}) // {whole}"
        text = " + ".join(self._print(t) for t in sorted(expr.args, key=str))
        return text.replace("+ -1 * ", "- ").replace("+ -", "- ")

    def _print_Function(self, expr: Any) -> str:
        raise InternalError(f"no Triton form for the index {expr}")

    def _print_Pow(self, expr: Any, rational: bool = False) -> str:
        base, power = expr.args
        if not power.is_Integer or not 0 < power <= POWERS:
            raise InternalError(f"no Triton form for the index {expr}")
        return f"({' * '.join([self._atom(base)] * int(power))})"

    def _print_Min(self, expr: Any) -> str:
        first, *rest = map(self._print, expr.args)
        return functools.reduce("tl.minimum({}, {})".format, rest, first)

    def _print_Max(self, expr: Any) -> str:
        first, *rest = map(self._print, expr.args)
        return functools.reduce("tl.maximum({}, {})".format, rest, first)


class Functions(StrPrinter):
    """Elementwise functions as text, in a dtype."""

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.exact = dtype == "float64"
        self.calls = CALLS | (IN_FLOAT64 if self.exact else {})

    def _print_Rational(self, expr: Any) -> str:
        """A number; Triton takes what is written for float32 in places."""
        value = float(expr)
        short = struct.unpack("f", struct.pack("f", value))[0] == value
        return repr(value) if short or not self.exact else f"tl.full((), {value!r}, tl.float64)"

    _print_Integer = _print_Float = _print_Pi = _print_Exp1 = _print_NumberSymbol = _print_Half = _print_Rational

    def _print_Function(self, expr: Any) -> str:
        name = expr.func.__name__
        if name not in self.calls:
            raise InternalError(f"no Triton form for the function {name}")
        return self.calls[name].format(*map(self._print, expr.args))

    _print_exp = _print_sin = _print_cos = _print_log = _print_tanh = _print_erf = _print_floor = _print_Function

    def _print_Pow(self, expr: Any, rational: bool = False) -> str:
        base, power = expr.args
        if not base.free_symbols:
            return self._print_Rational(expr)
        text = self.parenthesize(base, 60)
        if power == sympy.Rational(1, 2):
            return f"tl.sqrt({text})"
        if power == -sympy.Rational(1, 2):
            return f"tl.rsqrt({text})"
        if power.is_Integer and 1 < abs(power) <= POWERS:
            times = " * ".join([text] * abs(int(power)))
            return f"({times})" if power > 0 else f"(1.0 / ({times}))"
        if power == -1:
            return f"(1.0 / {text})"
        return f"tl.exp({float(power)!r} * tl.log({text}))"

    def _print_Mul(self, expr: Any) -> str:
        return " * ".join(self.parenthesize(f, 50) for f in expr.args)

    def _print_Add(self, expr: Any, order: Any = None) -> str:
        return " + ".join(self.parenthesize(t, 40) for t in expr.args).replace("+ -", "- ")


def called(texts: Sequence[str]) -> list[str]:
    """The device functions that some kernels call."""
    return [text for word, text in FUNCTIONS.items() if any(f"{word}(" in t for t in texts)]
