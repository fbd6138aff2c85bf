"""Smart constructors of primitives: the small identities that keep expressions canonical.

None of them changes a value: sums are flat and collect like terms, numbers stand outside products,
an index summed over one operand alone is reduced first.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import prod
from string import ascii_letters
from typing import Any, TypeAlias

import sympy

from adaptc.errors import ShapeError
from adaptc.ir.dims import Dim, Shape, Size, as_dim, product, same, same_shape, show
from adaptc.ir.expr import Expr, rewrite
from adaptc.ir.functions import ARGS
from adaptc.ir.prims import (
    INDEX,
    Add,
    Broadcast,
    Constant,
    Contract,
    Detach,
    Index,
    Leaf,
    Map,
    Put,
    Reduce,
    Reshape,
    Scale,
    Take,
    Transform,
)

Number: TypeAlias = float | sympy.Expr
_EYE = sympy.KroneckerDelta(INDEX[0], INDEX[1])


def number(value: object) -> Number:
    """A Python float, or an exact SymPy expression of symbolic sizes."""
    if isinstance(value, Size):
        value = value.expr
    if isinstance(value, sympy.Expr):
        return float(value) if value.is_number else value
    return float(value)  # type: ignore[arg-type]


def zeros(shape: Shape) -> Expr:
    """0 everywhere."""
    return Constant(sympy.Integer(0), shape)


def ones(shape: Shape) -> Expr:
    """1 everywhere."""
    return Constant(sympy.Integer(1), shape)


def eye(n: Dim) -> Expr:
    """The identity matrix."""
    return Constant(_EYE, (n, n))


def is_zero(node: Expr) -> bool:
    """Is this the constant 0?"""
    return isinstance(node, Constant) and node.value == 0


def scale(factor: object, x: Expr) -> Expr:
    """factor * x, numbers collected: 2 * (3 * x) -> 6 * x."""
    c = number(factor)
    if isinstance(x, Scale):
        c, x = number(c * x.factor), x.x
    if c == 0 or is_zero(x):
        return zeros(x.dims)
    return x if c == 1 else Scale(c, x)


def split(x: Expr) -> tuple[Number, Expr]:
    """x as a number times the rest."""
    return (x.factor, x.x) if isinstance(x, Scale) else (1.0, x)


def add(*terms: Expr) -> Expr:
    """The flat sum; like terms are collected and zeros dropped."""
    flat: list[Expr] = []
    for t in terms:
        flat.extend(t.terms if isinstance(t, Add) else (t,))
    for t in flat[1:]:
        if not same_shape(flat[0].dims, t.dims):
            raise ShapeError(f"cannot add {show(flat[0].dims)} and {show(t.dims)}")
    weights: dict[Expr, Number] = {}
    for t in flat:
        c, rest = split(t)
        weights[rest] = weights[rest] + c if rest in weights else c
    kept = [scale(c, t) for t, c in weights.items() if c != 0 and not is_zero(t)]
    if not kept:
        return zeros(flat[0].dims)
    return kept[0] if len(kept) == 1 else Add(tuple(kept))


def apply(fn: sympy.Expr, *args: Expr, kind: str = "real") -> Expr:
    """The elementwise function; constants and a function that is a lone argument fold away."""
    if fn == ARGS[0]:
        return args[0]
    if fn.is_number:
        shape = max((t.dims for t in args), key=len)
        return scale(float(fn), ones(shape))
    used = [t for t, s in zip(args, ARGS, strict=False) if s in fn.free_symbols]
    if len(used) < len(args):
        shape = max((t.dims for t in args), key=len)
        names = [s for s in ARGS[: len(args)] if s in fn.free_symbols]
        small = apply(fn.xreplace(dict(zip(names, ARGS, strict=False))), *used, kind=kind)
        return small if small.dims == shape else broadcast(small, shape, ())
    return Map(fn, args, kind)


def conj(x: Expr) -> Expr:
    """The complex conjugate, numbers outside; a real tensor is its own, and that of a conjugate what it is made of."""
    if x.kind != "complex":
        return x
    c, rest = split(x)
    if isinstance(rest, Map) and rest.fn.has(sympy.conjugate):
        return scale(c, rest.args[0])
    return scale(c, Map(sympy.conjugate(sympy.Symbol("a0")), (rest,), "complex"))


def real(x: Expr) -> Expr:
    """The real part, numbers outside; a real tensor is its own."""
    if x.kind != "complex":
        return x
    c, rest = split(x)
    if isinstance(rest, Map) and rest.fn.has(sympy.conjugate):
        rest = rest.args[0]
    return scale(c, Map(sympy.re(sympy.Symbol("a0")), (rest,), "real"))


def transform(name: str, x: Expr, axis: int) -> Expr:
    """A fast transform along an axis, numbers outside."""
    c, rest = split(x)
    return scale(c, Transform(name, rest, axis))


def detach(x: Expr) -> Expr:
    """The value of x, constant for derivatives."""
    return x if isinstance(x, (Detach, Constant)) else Detach(x)


def reduce_sum(x: Expr, axes: Sequence[int]) -> Expr:
    """The sum along axes, numbers outside; of one entry it is that entry."""
    if not axes:
        return x
    c, rest = split(x)
    shape = tuple(d for j, d in enumerate(x.dims) if j not in axes)
    if is_zero(x):
        return zeros(shape)
    if all(x.dims[j] == 1 for j in axes):
        return reshape(x, shape)
    return scale(c, Reduce("sum", rest, tuple(sorted(axes))))


def broadcast(x: Expr, shape: Shape, axes: Sequence[int]) -> Expr:
    """x along `axes` of `shape`, repeated along the others; numbers outside."""
    if len(axes) == len(shape) and tuple(axes) == tuple(range(len(shape))):
        return x
    if is_zero(x):
        return zeros(shape)
    if isinstance(x, Constant) and x.value == 1:
        return ones(shape)
    c, rest = split(x)
    return scale(c, Broadcast(rest, shape, tuple(axes)))


def reshape(x: Expr, shape: Shape) -> Expr:
    """reshape(reshape(x, _), s) -> reshape(x, s); numbers outside."""
    if not same(product(x.dims), product(shape)):
        return Reshape(x, shape)  # raises, naming both
    c, rest = split(x)
    if is_zero(rest):
        return zeros(shape)
    if isinstance(rest, Constant) and rest.value == 1:
        return scale(c, ones(shape))
    if isinstance(rest, Reshape):
        rest = rest.x
    return scale(c, rest if same_shape(rest.dims, shape) else Reshape(rest, shape))


def take(x: Expr, index: Sequence[Index], shape: Shape) -> Expr:
    """Gather; the identity index gives x."""
    if same_shape(x.dims, shape) and tuple(index) == INDEX[: len(shape)]:
        return x
    if is_zero(x):
        return zeros(shape)
    c, rest = split(x)
    return scale(c, Take(rest, tuple(index), shape))


def put(x: Expr, index: Sequence[Index], shape: Shape) -> Expr:
    """Scatter; the identity index gives x."""
    if same_shape(x.dims, shape) and tuple(index) == INDEX[: len(shape)]:
        return x
    if is_zero(x):
        return zeros(shape)
    c, rest = split(x)
    return scale(c, Put(rest, tuple(index), shape))


@functools.lru_cache(maxsize=8192)
def contract(spec: str, *operands: Expr) -> Expr:
    """The einsum `spec` of the operands, made canonical. Raises ShapeError naming both sizes of an index."""
    inputs, out = parse(spec, len(operands))
    factor: Number = 1.0
    plain: list[Expr] = []
    for letters, op in zip(inputs, operands, strict=True):
        if len(letters) != op.ndim:
            raise ShapeError(f"einsum '{spec}': '{letters}' names {len(letters)} axes, got {show(op.dims)}")
        c, rest = split(op)
        factor = number(factor * c)
        plain.append(rest)
    sizes = _sizes(spec, inputs, plain)
    if any(is_zero(p) for p in plain):
        return zeros(tuple(sizes[c] for c in out))
    found = _drop_eye(inputs, plain, out)
    if found is not None:
        return scale(factor, contract(*found))
    terms = [_diagonal(t, p) for t, p in zip(inputs, plain, strict=True)]
    terms = _reduce_lonely(terms, out)
    terms, missing = _drop_ones(terms, out)
    for letter in missing:  # in the result alone: repeat along it
        terms.append((letter, ones((sizes[letter],))))
    return scale(factor, _finish(terms, out))


def parse(spec: str, count: int) -> tuple[list[str], str]:
    """Operand letters and result letters of an einsum, checked."""
    text = spec.replace(" ", "")
    if "->" not in text or "." in text:
        raise ShapeError(f"einsum '{spec}': write every index and the result, as in 'ij,jk->ik'")
    left, out = text.split("->")
    inputs = left.split(",")
    if len(inputs) != count:
        raise ShapeError(f"einsum '{spec}' names {len(inputs)} operands, got {count}")
    if set(out) - set(left) or len(set(out)) != len(out):
        raise ShapeError(f"einsum '{spec}': each index of the result stands once in it and in an operand")
    return inputs, out


def _sizes(spec: str, inputs: list[str], operands: list[Expr]) -> dict[str, Dim]:
    sizes: dict[str, Dim] = {}
    for letters, op in zip(inputs, operands, strict=True):
        for letter, d in zip(letters, op.dims, strict=True):
            if not same(sizes.setdefault(letter, d), d):
                raise ShapeError(f"einsum '{spec}': index {letter} is {sizes[letter]} and {d}")
    return sizes


def _drop_eye(inputs: list[str], operands: list[Expr], out: str) -> tuple[Any, ...] | None:
    """A product with the identity matrix renames an index."""
    for j, (letters, op) in enumerate(zip(inputs, operands, strict=True)):
        if not (isinstance(op, Constant) and op.value == _EYE) or len(set(letters)) < 2:
            continue
        rest = [t for i, t in enumerate(inputs) if i != j]
        for keep, drop in (tuple(letters), tuple(letters[::-1])):
            if drop not in out and any(drop in t for t in rest):
                spec = f"{','.join(t.replace(drop, keep) for t in rest)}->{out}"
                if keep in spec.split("->")[0] or keep not in out:
                    return (spec, *(op for i, op in enumerate(operands) if i != j))
    return None


def _diagonal(letters: str, op: Expr) -> tuple[str, Expr]:
    """An index twice in one operand is its diagonal."""
    first = "".join(dict.fromkeys(letters))
    if first == letters:
        return letters, op
    index = [INDEX[first.index(c)] for c in letters]
    return first, take(op, index, tuple(op.dims[letters.index(c)] for c in first))


def _reduce_lonely(terms: list[tuple[str, Expr]], out: str) -> list[tuple[str, Expr]]:
    """An index of one operand alone, not in the result, is summed there."""
    done = []
    for j, (letters, op) in enumerate(terms):
        others = set(out).union(*(t for i, (t, _) in enumerate(terms) if i != j))
        lonely = [a for a, c in enumerate(letters) if c not in others]
        done.append(("".join(c for c in letters if c in others), reduce_sum(op, lonely)))
    return done


def _drop_ones(terms: list[tuple[str, Expr]], out: str) -> tuple[list[tuple[str, Expr]], list[str]]:
    """Operands of ones do nothing, but for the indices that only they carry."""
    kept = [(t, op) for t, op in terms if not (isinstance(op, Constant) and op.value == 1)]
    dropped = [c for t, op in terms if isinstance(op, Constant) and op.value == 1 for c in t]
    have = set("".join(t for t, _ in kept))
    if not kept:
        return terms, []
    summed = [c for c in dropped if c not in out and c not in have]
    if summed or any(c not in out and sum(c in t for t, _ in kept) < 2 for c in have):
        return terms, []
    return kept, [c for c in dict.fromkeys(dropped) if c not in have]


def _finish(terms: list[tuple[str, Expr]], out: str) -> Expr:
    factor: Number = 1.0
    operands, letters = [], []
    for t, op in terms:
        c, rest = split(op)
        factor = number(factor * c)
        operands.append(rest)
        letters.append(t)
    if len(operands) == 1 and letters[0] == out:
        return scale(factor, operands[0])
    names = dict(zip(dict.fromkeys("".join(letters)), ascii_letters, strict=False))
    text = ",".join("".join(names[c] for c in t) for t in letters)
    node = Contract(f"{text}->{''.join(names[c] for c in out)}", tuple(operands))
    return scale(factor, node)


def refold(root: Expr) -> Expr:
    """The small identities again, after a leaf was replaced: zeros spread, like terms meet."""
    return rewrite(root, again)


def again(e: Expr) -> Expr:
    """A node built again from its operands, which may have changed."""
    match e:
        case Contract():
            return contract(e.spec, *e.operands)
        case Add():
            return add(*e.terms)
        case Scale():
            return scale(e.factor, e.x)
        case Broadcast():
            return broadcast(e.x, e.size, e.axes)
        case Reshape():
            return reshape(e.x, e.size)
        case Take():
            return take(e.x, e.index, e.size)
        case Put():
            return put(e.x, e.index, e.size)
        case Transform():
            return transform(e.name, e.x, e.axis)
        case Map():
            return real(e.args[0]) if e.fn.has(sympy.re) else conj(e.args[0]) if e.fn.has(sympy.conjugate) else e
        case _:
            return e


def transpose_last(x: Expr) -> Expr:
    """The last two axes swapped."""
    letters = ascii_letters[: x.ndim]
    return contract(f"{letters}->{letters[:-2]}{letters[-1]}{letters[-2]}", x)


def permute(x: Expr, order: Sequence[int]) -> Expr:
    """Axes in another order, as numpy.transpose."""
    letters = ascii_letters[: x.ndim]
    return contract(f"{letters}->{''.join(letters[j] for j in order)}", x)


def times(x: Expr, y: Expr) -> Expr:
    """Elementwise product of one shape, or with a scalar."""
    lx, ly = ascii_letters[: x.ndim], ascii_letters[: y.ndim]
    return contract(f"{lx},{ly}->{max(lx, ly, key=len)}", x, y)


def batched(spec: str, *operands: Expr) -> Expr:
    """`contract` with `...` for leading batch axes that every operand marked with it shares."""
    inputs, out = spec.replace(" ", "").split("->")
    terms = inputs.split(",")
    extra = max(op.ndim - len(t.replace("...", "")) for t, op in zip(terms, operands, strict=True) if "..." in t)
    free = [c for c in reversed(ascii_letters) if c not in spec][:extra]
    return contract(spec.replace("...", "".join(free)), *operands)


def swap_spec(ndim: int) -> str:
    """Letters for an array of ndim axes."""
    return ascii_letters[:ndim]


def constant(value: object, shape: Shape) -> Expr:
    """A constant by a SymPy expression of the indices, or written out."""
    return Constant(value if isinstance(value, tuple) else sympy.sympify(value), shape)


def leaf(name: str, *shape: object, role: str = "param", kind: str = "real") -> Leaf:
    """A leaf of the given sizes."""
    return Leaf(name, tuple(as_dim(d) for d in shape), role, kind)


def count(shape: Shape) -> Dim:
    """Entries of a shape; a plain int where all sizes are."""
    return prod(shape) if all(isinstance(d, int) for d in shape) else product(shape)
