"""Whole-number arithmetic on the indices of tensors: quotients and remainders that fold away where sizes allow it.

An index is a SymPy expression of the variables of a kernel, each of which runs from 0 to its extent - 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy

from adaptc.ir.dims import TOKENS, Dim, Shape
from adaptc.ir.prims import INDEX

Extents = Mapping[sympy.Expr, Dim]


class NotTiled(Exception):
    """A value is not made of steps on tiles."""


class quotient(sympy.Function):  # noqa: N801
    """The whole part of a / b."""


class remainder(sympy.Function):  # noqa: N801
    """a - b quotient(a, b)."""


class lookup(sympy.Function):  # noqa: N801
    """lookup(j, i): entry i of the j-th table of whole numbers."""


def bounds(e: sympy.Expr, extents: Extents) -> tuple[sympy.Expr, sympy.Expr]:
    """The least and the greatest value of an index; oo where it is not known."""
    if e.is_Integer:
        return e, e
    if e in extents:
        return sympy.Integer(0), sympy.sympify(extents[e]) - 1
    if isinstance(e, lookup):  # a place
        return sympy.Integer(0), sympy.oo
    if isinstance(e, sympy.Add):
        parts = [bounds(t, extents) for t in e.args]
        return sum(p[0] for p in parts), sum(p[1] for p in parts)
    if isinstance(e, sympy.Mul) and e.args[0].is_Integer:
        c, rest = e.args[0], sympy.Mul(*e.args[1:])
        low, high = (c * b for b in bounds(rest, extents))
        return (low, high) if c > 0 else (high, low)
    if isinstance(e, remainder):
        return sympy.Integer(0), e.args[1] - 1
    if isinstance(e, quotient) and e.args[1].is_Integer:
        low, high = bounds(e.args[0], extents)
        return sympy.floor(low / e.args[1]), sympy.floor(high / e.args[1]) if high.is_Integer else high / e.args[1]
    return -sympy.oo, sympy.oo


def _split(e: sympy.Expr, n: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """(a, b) with e = n a + b."""
    whole, rest = sympy.Integer(0), sympy.Integer(0)
    for t in sympy.Add.make_args(sympy.expand(e)):
        ratio = sympy.cancel(t / n)
        if sympy.denom(ratio) == 1:
            whole += ratio
        else:
            rest += t
    return whole, rest


def _within(e: sympy.Expr, n: sympy.Expr, extents: Extents) -> bool:
    """0 <= e < n?"""
    low, high = bounds(e, extents)
    return bool(low.is_nonnegative) and _less(high, n)


def _less(a: sympy.Expr, b: sympy.Expr) -> bool:
    difference = sympy.expand(b - a)
    return bool(difference.is_positive)


def divide(e: sympy.Expr, n: Dim, extents: Extents) -> sympy.Expr:
    """The whole part of e / n."""
    n = sympy.sympify(n)
    if n == 1:
        return e
    if isinstance(e, quotient):
        return divide(e.args[0], e.args[1] * n, extents)
    whole, rest = _split(e, n)
    if _within(rest, n, extents):
        return whole
    turns = _turns(rest, n, extents)
    return whole - turns + quotient(rest + turns * n, n)


def modulo(e: sympy.Expr, n: Dim, extents: Extents) -> sympy.Expr:
    """What is left of e after division by n."""
    n = sympy.sympify(n)
    if n == 1:
        return sympy.Integer(0)
    _, rest = _split(e, n)
    return rest if _within(rest, n, extents) else remainder(rest + _turns(rest, n, extents) * n, n)


def _turns(e: sympy.Expr, n: sympy.Expr, extents: Extents) -> sympy.Expr:
    """How often n is added to an index so that it is not negative: kernels divide towards zero."""
    low, _ = bounds(e, extents)
    if low.is_infinite:
        raise NotTiled(f"{e} may be negative")
    return sympy.ceiling(-low / n) if low.is_Integer and low < 0 else sympy.Integer(0)


def flat(index: Sequence[sympy.Expr], shape: Shape, extents: Extents) -> sympy.Expr:
    """The place of an entry, row-major."""
    at, stride = sympy.Integer(0), sympy.Integer(1)
    for i, d in zip(reversed(index), reversed(shape), strict=True):
        at += i * stride
        stride *= d
    return _joined(sympy.expand(at), extents)


def _joined(e: sympy.Expr, extents: Extents) -> sympy.Expr:
    """n quotient(a, n) + remainder(a, n) is a."""
    again = True
    while again:
        again = False
        terms = dict(_coefficients(e))
        for t, c in terms.items():
            if isinstance(t, remainder):
                a, n = t.args
                whole = divide(a, n, extents)
                if terms.get(whole) == c * n:
                    e = sympy.expand(e - c * t - c * n * whole + c * a)
                    again = True
                    break
    return e


def _coefficients(e: sympy.Expr) -> list[tuple[sympy.Expr, sympy.Expr]]:
    found = []
    for t in sympy.Add.make_args(e):
        factors = sympy.Mul.make_args(t)
        numbers = [f for f in factors if f.is_Integer or f == TOKENS]
        rest = [f for f in factors if not (f.is_Integer or f == TOKENS)]
        found.append((sympy.Mul(*rest), sympy.Mul(*numbers)))
    return found


def unflat(at: sympy.Expr, shape: Shape, extents: Extents) -> tuple[sympy.Expr, ...]:
    """The index of the entry at a place. Tokens may be the first axis alone, so that no size but a number divides."""
    index: list[sympy.Expr] = []
    for j in reversed(range(len(shape))):
        index.append(modulo(at, shape[j], extents) if j or shape[j] == 1 else at)
        at = divide(at, shape[j], extents) if j else at
    return tuple(reversed(index))


def reshaped(index: Sequence[sympy.Expr], have: Shape, want: Shape, extents: Extents) -> tuple[sympy.Expr, ...]:
    """The index into `want` of the entry at an index into `have`: group by group of axes with one product."""
    found: list[sympy.Expr] = []
    i = j = 0
    while i < len(have) or j < len(want):
        i0, j0 = i, j
        a = b = sympy.Integer(1)
        while a != b or (i, j) == (i0, j0):
            if (i < len(have) and (i, j) == (i0, j0)) or _less(a, b):
                a, i = sympy.expand(a * have[i]), i + 1
            else:
                b, j = sympy.expand(b * want[j]), j + 1
        found += unflat(flat(index[i0:i], have[i0:i], extents), want[j0:j], extents)
    return tuple(found)


def moved(entry: sympy.Expr, index: Sequence[sympy.Expr], extents: Extents) -> sympy.Expr:
    """An index of a Take that SymPy knows, with the places of the result put into it."""
    return folded(sympy.sympify(entry).xreplace({INDEX[j]: i for j, i in enumerate(index)}), extents)


def folded(e: sympy.Expr, extents: Extents) -> sympy.Expr:
    """SymPy's Mod and floor as `remainder` and `quotient`; gone where sizes allow it."""
    if isinstance(e, (quotient, remainder, sympy.Mod, sympy.floor)):
        if isinstance(e, sympy.floor):
            top, bottom = sympy.fraction(sympy.together(e.args[0]))
        else:
            top, bottom = e.args
        return (divide if isinstance(e, (quotient, sympy.floor)) else modulo)(folded(top, extents), bottom, extents)
    if not e.args or isinstance(e, lookup):
        return e
    return sympy.expand(e.func(*(folded(a, extents) for a in e.args)))
