"""The formula of an adapter: traced with symbolic sizes where the equation allows it, else at a concrete size."""

from __future__ import annotations

import functools

from adaptc.errors import AdaptcError
from adaptc.ir.expr import Expr, substitute
from adaptc.ir.printer import formula
from adaptc.language import Adapter, Equation, symbols

CONCRETE = 64


@functools.lru_cache(maxsize=256)
def symbolic(adapter: Adapter) -> tuple[str, Equation]:
    """The text and the equation. An equation that asks a symbolic size for a number is shown at 64 x 64."""
    try:
        equation = adapter.trace(*symbols())
    except (AdaptcError, TypeError, ValueError):
        equation = adapter.trace(CONCRETE, CONCRETE)
        return f"{text(equation)}    [at n = k = {CONCRETE}]", equation
    return text(equation), equation


def text(equation: Equation) -> str:
    """`W' = W + 2 (B @ A)`, and the bias where the equation changes it."""
    weight, bias, output = (None if e is None else substitute(e, _attached(equation)) for e in equation.results)
    if output is not None:
        return f"y' = {formula(output)}"
    assert weight is not None
    line = f"W' = {formula(weight)}"
    return line if bias is None else f"{line}, bias' = {formula(bias)}"


def _attached(equation: Equation) -> dict[Expr, Expr]:
    return {leaf: value for leaf, value in equation.attach}
