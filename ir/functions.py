"""Elementwise functions as SymPy expressions of a0, a1, ...; their derivatives are SymPy's.

Functions that SymPy lacks, or whose textbook derivative overflows or is undefined at a point that
training meets, are declared here with the derivative that torch uses.
"""

from __future__ import annotations

from typing import Any

import sympy

ARGS = tuple(sympy.Symbol(f"a{i}", real=True) for i in range(16))
a, b = ARGS[:2]


class sigmoid(sympy.Function):  # noqa: N801
    """1 / (1 + exp(-a)), without overflow."""

    def fdiff(self, argindex: int = 1) -> Any:
        s = sigmoid(self.args[0])
        return s * (1 - s)


class positive(sympy.Function):  # noqa: N801
    """1 where a > 0, else 0: no derivative."""

    def fdiff(self, argindex: int = 1) -> Any:
        return sympy.Integer(0)


class nearest(sympy.Function):  # noqa: N801
    """The nearest whole number, ties to even: no derivative."""

    def fdiff(self, argindex: int = 1) -> Any:
        return sympy.Integer(0)


class direction(sympy.Function):  # noqa: N801
    """The sign of a: no derivative."""

    def fdiff(self, argindex: int = 1) -> Any:
        return sympy.Integer(0)


class magnitude(sympy.Function):  # noqa: N801
    """The absolute value of a, with derivative 0 at 0 as in torch."""

    def fdiff(self, argindex: int = 1) -> Any:
        return direction(self.args[0])


class larger(sympy.Function):  # noqa: N801
    """The larger of two numbers; at a tie each side gets half of the derivative, as in torch."""

    def fdiff(self, argindex: int = 1) -> Any:
        p, q = self.args if argindex == 1 else reversed(self.args)
        return (1 + direction(p - q)) / 2


class root(sympy.Function):  # noqa: N801
    """The square root of a sum of squares, with derivative 0 at 0 as torch's norms have."""

    def fdiff(self, argindex: int = 1) -> Any:
        return inverse_root(self.args[0]) / 2


class inverse_root(sympy.Function):  # noqa: N801
    """1 / sqrt(a) where a > 0, else 0."""

    def fdiff(self, argindex: int = 1) -> Any:
        return -(inverse_root(self.args[0]) ** 3) / 2


ELEMENTWISE: dict[str, sympy.Expr] = {
    "exp": sympy.exp(a),
    "log": sympy.log(a),
    "sqrt": sympy.sqrt(a),
    "abs": magnitude(a),
    "sin": sympy.sin(a),
    "cos": sympy.cos(a),
    "tanh": sympy.tanh(a),
    "sigmoid": sigmoid(a),
    "relu": a * positive(a),
    "silu": a * sigmoid(a),
    "gelu": a * (1 + sympy.erf(a / sympy.sqrt(2))) / 2,
    "round": nearest(a),
    "maximum": larger(a, b),
    "minimum": -larger(-a, -b),
    "less": positive(b - a),
}
"""The elementwise functions of the language by name, with torch's meaning and derivative."""
