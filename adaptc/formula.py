"""The formula of an adapter: traced with symbolic sizes where the equation allows it, else at a concrete size."""

from __future__ import annotations

import functools

from adaptc.errors import AdaptcError, SymbolicSizeError
from adaptc.ir.printer import formula
from adaptc.language import Adapter, Equation, symbols

CONCRETE = 64


@functools.lru_cache(maxsize=256)
def symbolic(adapter: Adapter) -> tuple[str, Equation]:
    """The text and the equation. An equation that asks a symbolic size for a number is shown at 64 x 64."""
    try:
        equation = adapter.trace(*symbols())
        return text(equation), equation
    except (SymbolicSizeError, AdaptcError, TypeError):
        equation = adapter.trace(CONCRETE, CONCRETE)
        return f"{text(equation)}    [at n = k = {CONCRETE}]", equation


def text(equation: Equation) -> str:
    """`W' = W + 2 (B @ A)`, and the bias where the equation changes it."""
    if equation.output is not None:
        return f"y' = {formula(equation.output)}"
    assert equation.weight is not None
    line = f"W' = {formula(equation.weight)}"
    return line if equation.bias is None else f"{line}, bias' = {formula(equation.bias)}"
