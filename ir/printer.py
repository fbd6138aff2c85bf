"""Text of expressions: the formula a user reads, and the numbered form that is saved and hashed."""

from __future__ import annotations

import functools
from typing import Any

import sympy

from adaptc.ir.dims import Dim, Shape, same, show
from adaptc.ir.expr import Expr, postorder
from adaptc.ir.functions import ARGS, ELEMENTWISE, root
from adaptc.ir.matrix import Dropout, Factor, Initial, MatMul, Noise, Transpose
from adaptc.ir.operator import AbstractOperator
from adaptc.ir.prims import (
    INDEX,
    Add,
    At,
    Broadcast,
    Constant,
    Contract,
    Detach,
    Leaf,
    Map,
    Reduce,
    Scale,
    Take,
)

SUM, PRODUCT, ATOM = 1, 2, 3


def formula(e: Expr) -> str:
    """An expression as a user would write it."""
    return _show(e, SUM)


DEPTH = 7


def brief(e: Expr, width: int = 60) -> str:
    """A formula cut to a width and a depth, for tables: the text of a shared subexpression can be long beyond use."""
    text = formula(_shallow(e, DEPTH))
    return text if len(text) <= width else text[: width - 3] + "..."


@functools.lru_cache(maxsize=8192)
def _shallow(e: Expr, depth: int) -> Expr:
    if not e.children:
        return e
    if depth == 0:
        return Leaf("...", e.dims, "param", e.kind)
    return e.rebuild(lambda child: _shallow(child, depth - 1))


def _show(e: Expr, level: int) -> str:
    text, own = _text(e)
    return f"({text})" if own < level else text


def _factor(c: Any) -> str:
    if isinstance(c, sympy.Expr):
        return f"({c})" if c.is_Add else str(c)
    return str(int(c)) if float(c).is_integer() else f"{c:.6g}"


@functools.lru_cache(maxsize=8192)
def _text(e: Expr) -> tuple[str, int]:  # noqa: C901 - one case per node, a table in the form of a match
    match e:
        case Leaf():
            return e.name, ATOM
        case Add():
            text = ""
            for t in e.terms:
                part = _show(t, PRODUCT)
                negative = part.startswith("-")
                text += (" - " + part[1:] if negative else " + " + part) if text else part
            return text, SUM
        case Scale() if isinstance(e.x, Constant) and e.x.value == 1:
            return _factor(e.factor), PRODUCT
        case Scale() if e.factor == -1:
            return f"-{_show(e.x, PRODUCT)}", PRODUCT
        case Scale():
            return f"{_factor(e.factor)} {_show(e.x, ATOM)}", PRODUCT
        case MatMul():
            return f"{_show(e.A, PRODUCT)} @ {_show(e.B, ATOM)}", PRODUCT
        case Transpose():
            return f"{_show(e.A, ATOM)}^T", ATOM
        case Contract() if (soft := _softmax(e)) is not None:
            return soft, ATOM
        case Contract() if (quotient := _quotient(e)) is not None:
            return quotient, PRODUCT
        case Contract() if (triangle := _triangle(e)) is not None:
            return triangle, ATOM
        case Take() if (picked := _part(e)) is not None:
            return picked, ATOM
        case Contract() if len(e.operands) == 2 and all(t in ("", e.terms[1]) for t in e.terms[0]):
            return " * ".join(_show(op, ATOM) for op in e.operands), PRODUCT
        case Contract():
            return f"einsum('{e.spec}', {', '.join(map(formula, e.operands))})", ATOM
        case Map() if e.fn == root(ARGS[0]) and isinstance(e.args[0], Contract) and _squares(e.args[0]) is not None:
            return str(_squares(e.args[0])), ATOM
        case Map() if e.fn in _NAMES:
            return f"{_NAMES[e.fn]}({', '.join(map(formula, e.args))})", ATOM
        case Map():
            args = {sympy.Symbol(f"a{j}", real=True): f"{{{j}}}" for j in range(len(e.args))}
            body = str(e.fn.xreplace({s: sympy.Symbol(name) for s, name in args.items()}))
            for j, t in enumerate(e.args):
                body = body.replace(f"{{{j}}}", _show(t, ATOM))
            return body, SUM
        case Reduce():
            return f"{e.op}({formula(e.x)}, axis={_axes(e.axes)})", ATOM
        case Broadcast():
            return f"rows({formula(e.x)})" if e.axes == (len(e.size) - 1,) else f"tile({formula(e.x)})", ATOM
        case Constant():
            return _constant(e), ATOM
        case Detach() | Initial():
            return f"{type(e).__name__.lower()}({formula(e.children[0])})", ATOM
        case Factor():
            kind, part = e.name.split(".") if "." in e.name else (e.name, "")
            return f"{kind}({formula(e.A)}){'.' + part if part else ''}", ATOM
        case Noise():
            return f"noise({show(e.size)})", ATOM
        case Dropout():
            return f"dropout({formula(e.A)}, {e.p:g})", ATOM
        case AbstractOperator():
            return f"{e.name}({', '.join(filter(None, map(_field, e.fields)))})", ATOM
        case _:
            return (
                f"{type(e).__name__.lower()}({', '.join(filter(None, map(_field, e.fields)))})",
                ATOM,
            )


_NAMES = {fn: name for name, fn in ELEMENTWISE.items()}


def _squares(e: Contract) -> str | None:
    """norm(V) or norm(V, axis=j): the square root of a sum of squares."""
    inputs, out = e.terms
    if len(e.operands) != 2 or e.operands[0] is not e.operands[1] or inputs[0] != inputs[1]:
        return None
    lost = [j for j, c in enumerate(inputs[0]) if c not in out]
    if out and len(lost) != 1:
        return None
    axis = f", axis={lost[0]}" if out else ""
    return f"norm({formula(e.operands[0])}{axis})"


def _quotient(e: Contract) -> str | None:
    """a / b of one shape."""
    inputs, out = e.terms
    if len(e.operands) != 2 or not inputs[0] == inputs[1] == out:
        return None
    b = e.operands[1]
    if not isinstance(b, Map) or b.fn != 1 / ARGS[0]:
        return None
    return f"{_show(e.operands[0], PRODUCT)} / {_show(b.args[0], ATOM)}"


def _softmax(e: Contract) -> str | None:
    """exp(M - max M) over its sum along an axis."""
    if len(e.operands) != 2 or not all(isinstance(op, Map) for op in e.operands):
        return None
    top, bottom = e.operands
    assert isinstance(top, Map)
    assert isinstance(bottom, Map)
    total = bottom.args[0]
    if top.fn != ELEMENTWISE["exp"] or bottom.fn != 1 / ARGS[0] or not isinstance(total, Reduce) or total.x is not top:
        return None
    shifted = top.args[0]
    inside = " + ".join(_show(t, PRODUCT) for t in shifted.terms[:-1]) if isinstance(shifted, Add) else formula(shifted)
    return f"softmax({inside}, axis={total.axes[0]})"


def _triangle(e: Contract) -> str | None:
    """tril(M) or triu(M): M times a constant of zeros and ones."""
    inputs, out = e.terms
    mask = e.operands[-1]
    if len(e.operands) != 2 or not isinstance(mask, Constant) or [*inputs, out] != [out, out[-2:], out]:
        return None
    i, j = INDEX[:2]
    name = {sympy.Heaviside(i - j, 1): "tril", sympy.Heaviside(j - i, 1): "triu"}.get(mask.value)
    return None if name is None else f"{name}({formula(e.operands[0])})"


def _part(e: Take) -> str | None:
    """M[a:b, i], take(M, index, axis) or tile(M, shape), as they were written."""
    plain = [entry == INDEX[j] for j, entry in enumerate(e.index)]
    tables = [(j, entry) for j, entry in enumerate(e.index) if isinstance(entry, At)]
    if len(tables) == 1 and sum(plain) == len(plain) - 1 and tables[0][1].axis == tables[0][0]:
        return f"take({formula(e.x)}, {formula(tables[0][1].table)}, axis={tables[0][0]})"
    if tables:
        return None
    if all(entry == sympy.Mod(INDEX[j], d) for j, (entry, d) in enumerate(zip(e.index, e.x.dims, strict=True))):
        return f"tile({formula(e.x)}, {show(e.size)})"
    parts: list[str] = []
    axis = 0
    for entry, d in zip(e.index, e.x.dims, strict=True):
        runs = bool(sympy.sympify(entry).free_symbols & set(INDEX))
        text = _slice(entry, axis, d, e.size) if runs else str(entry)
        if text is None:
            return None
        axis += runs
        parts.append(text)
    while len(parts) > 1 and parts[-1] == ":":
        parts.pop()
    return f"{_show(e.x, ATOM)}[{', '.join(parts)}]" if axis == e.ndim else None


def _slice(entry: sympy.Expr, axis: int, d: Dim, size: Shape) -> str | None:
    """start:stop:step of an axis of size d, if the index runs through the result's next axis."""
    if axis >= len(size) or entry.free_symbols & set(INDEX) != {INDEX[axis]}:
        return None
    step, start = entry.coeff(INDEX[axis], 1), entry.coeff(INDEX[axis], 0)
    if sympy.expand(entry - start - step * INDEX[axis]) != 0 or not step.is_Integer:
        return None
    stop = start + size[axis] if step == 1 else d
    ends = "" if same(stop, d) else str(stop)
    return f"{'' if start == 0 else start}:{ends}" + ("" if step == 1 else f":{step}")


def _axes(axes: tuple[int, ...]) -> str:
    return str(axes[0]) if len(axes) == 1 else str(axes)


def _constant(e: Constant) -> str:
    if isinstance(e.value, tuple):
        return f"[{len(e.value)} numbers]"
    if e.value.is_number:
        return _factor(float(e.value))
    return "I" if isinstance(e.value, sympy.KroneckerDelta) else f"[{e.value}]"


def _field(value: Any) -> str:
    if isinstance(value, Expr):
        return formula(value)
    if isinstance(value, At):
        return formula(value.table)
    if isinstance(value, tuple):
        if len(value) > 8:
            return f"({value[0]}, ... {len(value)} values)"
        parts = [_field(v) for v in value]
        return ", ".join(parts) if any(isinstance(v, Expr) for v in value) else f"({', '.join(parts)})"
    return str(value)


def listing(root: Expr) -> str:
    """The text form that is saved and hashed: one numbered line a node, operands before users.

    `%3 = kron(%1, %2) : (32, 48)`. Leaves show name, role and kind. Fields that are no tensors stand as written.
    """
    names: dict[Expr, str] = {}
    lines = []
    for e in postorder(root):
        names[e] = f"%{len(names)}"
        head = e.name if isinstance(e, AbstractOperator) else type(e).__name__
        lines.append(f"{names[e]} = {head}({', '.join(_numbered(v, names) for v in e.fields)}) : {show(e.dims)}")
    return "\n".join(lines)


def _numbered(value: Any, names: dict[Expr, str]) -> str:
    if isinstance(value, Expr):
        return names[value]
    if isinstance(value, tuple):
        return f"[{' '.join(_numbered(v, names) for v in value)}]"
    return str(value)
