"""Elementwise SymPy functions as torch expressions, by SymPy's own printer."""

from __future__ import annotations

from typing import Any

import sympy
from sympy.printing.str import StrPrinter

from adaptc.errors import InternalError
from adaptc.ir.functions import ARGS

_CALLS = {
    "exp": "torch.exp({})",
    "log": "torch.log({})",
    "sin": "torch.sin({})",
    "cos": "torch.cos({})",
    "tanh": "torch.tanh({})",
    "erf": "torch.erf({})",
    "sigmoid": "torch.sigmoid({})",
    "nearest": "torch.round({})",
    "direction": "torch.sign({})",
    "magnitude": "torch.abs({})",
    "larger": "torch.maximum({}, {})",
    "root": "torch.sqrt({0}.masked_fill({0} == 0, 1.0)).masked_fill({0} == 0, 0.0)",
    "inverse_root": "torch.rsqrt({0}).masked_fill({0} == 0, 0.0)",
    "floor": "torch.floor({})",
    "re": "torch.real({})",
    "conjugate": "torch.conj({})",
    "Mod": "torch.remainder({}, {})",
}


class _Printer(StrPrinter):
    def __init__(self, names: tuple[str, ...], dtype: str, calls: dict[str, str]) -> None:
        super().__init__()
        self.names, self.dtype, self.calls = names, dtype, calls

    def _print_Symbol(self, expr: Any) -> str:
        for symbol, name in zip(ARGS, self.names, strict=False):
            if expr.name == symbol.name:
                return name
        raise InternalError(f"unknown symbol {expr} in an elementwise function")

    def _print_Float(self, expr: Any) -> str:
        return repr(float(expr))

    def _print_Rational(self, expr: Any) -> str:
        return repr(float(expr))

    def _print_NumberSymbol(self, expr: Any) -> str:
        return repr(float(expr))

    _print_Pi = _print_Exp1 = _print_NumberSymbol

    def _print_Function(self, expr: Any) -> str:
        name = expr.func.__name__
        if name == "positive":
            return f"({self._print(expr.args[0])} > 0).to(torch.{self.dtype})"
        if name == "floor" and isinstance(expr.args[0], sympy.Mul) and self.dtype == "int64":
            top, bottom = sympy.fraction(expr.args[0])
            return f"torch.div({self._print(top)}, {self._print(bottom)}, rounding_mode='floor')"
        if name not in self.calls:
            raise InternalError(f"no torch form for the function {name}")
        return self.calls[name].format(*map(self._print, expr.args))

    _print_exp = _print_sin = _print_floor = _print_re = _print_conjugate = _print_Mod = _print_Function

    def _print_Pow(self, expr: Any, rational: bool = False) -> str:
        base, power = expr.args
        text = self.parenthesize(base, 60)
        if not base.free_symbols:
            return repr(float(expr))
        if power == -1:
            return f"torch.reciprocal({text})"
        if power == sympy.Rational(1, 2):
            return f"torch.sqrt({text})"
        if power == -sympy.Rational(1, 2):
            return f"torch.rsqrt({text})"
        return f"torch.pow({text}, {int(power) if power.is_Integer else float(power)})"

    def _print_Mul(self, expr: Any) -> str:
        return " * ".join(self.parenthesize(f, 50) for f in expr.args)


UNDIFFERENTIATED = {
    "root": "torch.sqrt({})",
    "inverse_root": "torch.rsqrt({0}).masked_fill_({0} == 0, 0.0)",
}
"""Shorter text of the same values, where torch takes no derivative of it."""


def torch_text(fn: sympy.Expr, names: tuple[str, ...], dtype: str, differentiable: bool = False) -> str:
    """`fn` of a0, a1, ... over the named tensors, with results in `dtype`."""
    return str(_Printer(names, dtype, _CALLS if differentiable else _CALLS | UNDIFFERENTIATED).doprint(fn))
