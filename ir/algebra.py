"""The algebra that users write: `@ * / + - **`, indexing, and the functions that are not operators.

Shapes are checked where the equation is written; nothing broadcasts but numbers and scalars.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import sympy

from adaptc.errors import EquationError, ShapeError
from adaptc.ir import build
from adaptc.ir.dims import Dim, Size, as_dim, as_shape, same, same_shape, show
from adaptc.ir.expr import Expr
from adaptc.ir.functions import ARGS, ELEMENTWISE, root
from adaptc.ir.matrix import MatMul, Transpose
from adaptc.ir.operator import AbstractOperator
from adaptc.ir.prims import INDEX, At, Index, Leaf, Reduce, Scale, Table, TopK


def tensor(value: Any, like: Expr | None = None) -> Expr:
    """An expression, or a number laid over the shape of `like`."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, (int, float, Size, sympy.Expr)) and like is not None:
        return build.scale(value, build.ones(like.dims))
    raise EquationError(f"cannot use {described(value)} in an equation: only leaves, operators and numbers")


def described(value: Any) -> str:
    """A value for messages: a tensor by its kind and shape, not by its entries."""
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} {value!r:.60}" if shape is None else f"{type(value).__name__} of {tuple(shape)}"


def _pair(a: Any, b: Any, what: str) -> tuple[Expr, Expr]:
    x = tensor(a, b if isinstance(b, Expr) else None)
    y = tensor(b, x)
    if x.dims and y.dims and not same_shape(x.dims, y.dims):
        hint = " (vectors are not broadcast against matrices: use diag or linear)" if x.ndim != y.ndim else ""
        raise ShapeError(f"cannot {what} {show(x.dims)} and {show(y.dims)}{hint}")
    return x, y


def _spread(x: Expr, shape: tuple[Dim, ...]) -> Expr:
    return x if x.ndim == len(shape) else build.broadcast(x, shape, ())


def add(a: Any, b: Any) -> Expr:
    """a + b; a number or scalar leaf is added to every entry."""
    if isinstance(a, (int, float)) and a == 0:  # sum() starts at 0
        return tensor(b)
    for x, c in ((a, b), (b, a)):
        if isinstance(x, Expr) and x.kind == "integer" and isinstance(c, int):  # whole numbers stay what they are
            return build.apply(ARGS[0] + c, x, kind="integer")
    x, y = _pair(a, b, "add")
    shape = x.dims or y.dims
    return build.add(_spread(x, shape), _spread(y, shape))


def whole_divide(a: Any, b: Any) -> Expr:
    """floor(a / b) of whole numbers, b > 0 a number."""
    return build.apply(sympy.floor(ARGS[0] / _whole(a, b, "//")), a, kind="integer")


def remainder(a: Any, b: Any) -> Expr:
    """a - b floor(a / b) of whole numbers, b > 0 a number."""
    return build.apply(sympy.Mod(ARGS[0], _whole(a, b, "%")), a, kind="integer")


def _whole(a: Any, b: Any, sign: str) -> int:
    if not isinstance(a, Expr) or a.kind != "integer" or not isinstance(b, int) or b < 1:
        kind = a.kind if isinstance(a, Expr) else type(a).__name__
        raise EquationError(f"'a {sign} b' takes a vector of whole numbers and a number b > 0, got {kind} and {b!r}")
    return b


def subtract(a: Any, b: Any) -> Expr:
    """a - b."""
    x, y = _pair(a, b, "subtract")
    shape = x.dims or y.dims
    return build.add(_spread(x, shape), build.scale(-1, _spread(y, shape)))


def multiply(a: Any, b: Any) -> Expr:
    """Elementwise, or with a number or scalar."""
    if not isinstance(a, Expr):
        return build.scale(a, tensor(b))
    if not isinstance(b, Expr):
        return build.scale(b, a)
    return build.times(*_pair(a, b, "multiply"))


def divide_by(a: Any, b: Any) -> Expr:
    """Elementwise a / b, or by a number or scalar."""
    if not isinstance(b, Expr):
        return build.scale(sympy.Integer(1) / build.number(b), tensor(a))
    inverse = build.apply(1 / ARGS[0], b)
    return build.scale(a, inverse) if not isinstance(a, Expr) else build.times(*_pair(a, inverse, "divide"))


def power(a: Any, b: Any) -> Expr:
    """Elementwise a ** number."""
    if isinstance(b, Expr):
        raise EquationError("only a number can be an exponent: write exp(b * log(a))")
    if b == 2:
        return build.times(a, a)
    return build.apply(ARGS[0] ** sympy.nsimplify(b), tensor(a))


def matmul(a: Any, b: Any) -> Expr:
    """Matrix product; (n, k) @ (k,) -> (n,) and (k,) @ (k, n) -> (n,)."""
    a, b = tensor(a), tensor(b)
    if not a.ndim or not b.ndim:
        raise ShapeError(f"cannot multiply {show(a.dims)} with {show(b.dims)}: use * for scalars")
    if not same(a.dims[-1], b.dims[0 if b.ndim == 1 else -2]):
        inner = b.dims[0 if b.ndim == 1 else -2]
        raise ShapeError(f"cannot multiply {show(a.dims)} with {show(b.dims)}: {a.dims[-1]} is not {inner}")
    if b.ndim == 1 and a.ndim == 2 and structured(a):
        return build.reshape(MatMul(a, build.reshape(b, (b.dims[0], 1))), (a.dims[0],))
    if b.ndim == 1:
        return build.batched("...k,k->...", a, b)
    if a.ndim == 1:
        return build.batched("k,...kn->...n", a, b)
    (c, x), (d, y) = build.split(a), build.split(b)
    return build.scale(build.number(c * d), MatMul(x, y))


def transpose(a: Expr) -> Expr:
    """The last two axes swapped; a vector is its own transpose."""
    if a.ndim < 2:
        return a
    c, x = build.split(a)
    return build.scale(c, x.A if isinstance(x, Transpose) else Transpose(x))


def less(a: Any, b: Any) -> Expr:
    """1 where a < b, else 0; no derivative."""
    x, y = _pair(a, b, "compare")
    return build.apply(ELEMENTWISE["less"], x, y)


def refuse_truth(a: Expr) -> NoReturn:
    """An expression has no truth value while the equation is traced."""
    raise EquationError(f"an expression of shape {show(a.dims)} has no truth value: an equation cannot branch on it")


def index(a: Expr, item: Any) -> Expr:
    """numpy's basic indexing: integers, slices, `...`."""
    items = list(item) if isinstance(item, tuple) else [item]
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (a.ndim - len(items) + 1)
    if len(items) > a.ndim:
        raise ShapeError(f"{len(items)} indices for {show(a.dims)}")
    items += [slice(None)] * (a.ndim - len(items))
    entries: list[Index] = []
    shape: list[Dim] = []
    for entry, d in zip(items, a.dims, strict=True):
        if isinstance(entry, slice):
            start, step, length = _slice(entry, d)
            entries.append(start + step * INDEX[len(shape)])
            shape.append(length)
        else:
            entries.append(sympy.sympify(_position(entry, d)))
    return build.take(a, entries, tuple(shape))


def _position(entry: Any, d: Dim) -> Dim:
    at = as_dim(entry) if not isinstance(entry, int) else entry
    if isinstance(at, int) and at < 0:
        at = at + d
    if isinstance(at, int) and isinstance(d, int) and not 0 <= at < d:
        raise ShapeError(f"index {entry} is outside an axis of size {d}")
    return at


def _slice(s: slice, d: Dim) -> tuple[Any, int, Dim]:
    step = 1 if s.step is None else s.step
    if isinstance(d, int):
        bounds = [v if v is None or isinstance(v, int) else as_dim(v) for v in (s.start, s.stop)]
        r = range(*slice(bounds[0], bounds[1], step).indices(d))
        return sympy.Integer(r.start), r.step, len(r)
    start = 0 if s.start is None else as_dim(abs(s.start)) if not isinstance(s.start, int) else s.start
    stop = d if s.stop is None else s.stop if isinstance(s.stop, int) else as_dim(s.stop)
    start = d + start if isinstance(start, int) and start < 0 else start
    stop = d + stop if isinstance(stop, int) and stop < 0 else stop
    if step != 1:
        raise ShapeError(f"a step of {step} along an axis of symbolic size {d}")
    return sympy.sympify(start), 1, as_dim(sympy.sympify(stop) - start)


# ---------------------------------------------------------------------------- functions


def elementwise(name: str, *args: Any) -> Expr:
    """One of `functions.ELEMENTWISE`."""
    like = next((t for t in args if isinstance(t, Expr)), None)
    if like is None:
        raise EquationError(f"{name} of {described(args[0])}: write the number itself")
    if len(args) == 2:
        return build.apply(ELEMENTWISE[name], *_pair(*args, name))
    return build.apply(ELEMENTWISE[name], tensor(like))


def clamp(M: Expr, low: float, high: float) -> Expr:
    """M limited to [low, high] entry by entry."""
    return elementwise("minimum", elementwise("maximum", M, low), high)


def einsum(spec: str, *operands: Expr) -> Expr:
    """Einstein sum; every index and the result written out."""
    return build.contract(spec, *map(tensor, operands))


def reshape(M: Expr, shape: Any) -> Expr:
    """The entries of M, row-major, in another shape."""
    return build.reshape(M, as_shape(shape))


def norm(M: Expr, axis: int | None = None) -> Expr:
    """Euclidean norm along `axis`, which is dropped; None: the Frobenius norm, a scalar."""
    letters = build.swap_spec(M.ndim)
    axes = range(M.ndim) if axis is None else [_axis(M, axis)]
    out = "".join(c for j, c in enumerate(letters) if j not in axes)
    return build.apply(root(ARGS[0]), build.contract(f"{letters},{letters}->{out}", M, M))


def _axis(M: Expr, axis: int) -> int:
    if not -M.ndim <= axis < M.ndim:
        raise ShapeError(f"axis {axis} of {show(M.dims)}")
    return axis % M.ndim


def total(M: Expr, axis: int | None = None) -> Expr:
    """The sum along an axis, or of all entries."""
    return build.reduce_sum(M, range(M.ndim) if axis is None else [_axis(M, axis)])


def mean(M: Expr, axis: int | None = None) -> Expr:
    """The mean along an axis, or of all entries."""
    axes = tuple(range(M.ndim)) if axis is None else (_axis(M, axis),)
    size = build.count(tuple(M.dims[j] for j in axes))
    return build.scale(sympy.Integer(1) / size, build.reduce_sum(M, axes))


def maximum_along(M: Expr, axis: int | None = None) -> Expr:
    """The largest entry along an axis, or of all."""
    return Reduce("max", M, tuple(range(M.ndim)) if axis is None else (_axis(M, axis),))


def topk(M: Expr, j: int, axis: int | None = None) -> Expr:
    """1 at the j largest entries along an axis (None: of all), 0 elsewhere; no derivative."""
    return TopK(M, int(j), None if axis is None else _axis(M, axis))


def softmax(M: Expr, axis: int) -> Expr:
    """exp(M) / sum exp(M) along an axis, computed from M - max M."""
    j = _axis(M, axis)
    rest = [a for a in range(M.ndim) if a != j]
    top = build.broadcast(build.detach(Reduce("max", M, (j,))), M.dims, rest)
    e = build.apply(ELEMENTWISE["exp"], build.add(M, build.scale(-1, top)))
    inverse = build.apply(1 / ARGS[0], build.reduce_sum(e, [j]))
    letters = build.swap_spec(M.ndim)
    return build.contract(f"{letters},{letters[:j] + letters[j + 1 :]}->{letters}", e, inverse)


def linear(x: Expr, M: Expr, b: Expr | None = None) -> Expr:
    """x @ M.T, with b added to every row."""
    y = matmul(x, transpose(M))
    if b is None:
        return y
    if not same_shape(b.dims, y.dims[-1:]):
        raise ShapeError(f"a bias of shape {show(b.dims)} for rows of {y.dims[-1]}")
    return add(y, build.broadcast(b, y.dims, (y.ndim - 1,)))


def tile(M: Expr, shape: Any) -> Expr:
    """M repeated along each axis and cut to `shape`."""
    size = as_shape(shape)
    if len(size) != M.ndim:
        raise ShapeError(f"tile {show(M.dims)} to {show(size)}: the axes differ in number")
    return build.take(M, [sympy.Mod(INDEX[j], d) for j, d in enumerate(M.dims)], size)


def take(M: Expr, index: Any, axis: int) -> Expr:
    """The entries at an integer leaf, or a list of whole numbers, along an axis."""
    j = _axis(M, axis)
    table = index_table(index, M.dims[j])
    entries: list[Index] = [At(table, j) if a == j else INDEX[a] for a in range(M.ndim)]
    return build.take(M, entries, (*M.dims[:j], table.dims[0], *M.dims[j + 1 :]))


def index_table(index: Any, bound: Dim) -> Expr:
    """Whole numbers below `bound` as a vector: an integer leaf, or anything numpy would take as one."""
    if isinstance(index, Leaf) and index.role == "frozen" and index.kind == "real":
        index = Leaf(index.name, index.size, index.role, "integer")  # a function draws it: the equation checks
    if isinstance(index, Expr):
        if index.kind != "integer" or index.ndim != 1:
            raise ShapeError(f"an index must be a vector of whole numbers, got {index.kind} {show(index.dims)}")
        return index
    values = tuple(int(i) for i in (index.tolist() if hasattr(index, "tolist") else index))
    bad = [i for i in values if i < 0 or (isinstance(bound, int) and i >= bound)]
    if bad:
        raise ShapeError(f"index {bad[0]} is outside an axis of size {bound}")
    return Table(values)


def stack_along(parts: Sequence[Expr], axis: int) -> Expr:
    """Matrices one after another along an axis."""
    if not parts:
        raise EquationError("there is nothing to join")
    first = parts[0]
    length = as_dim(sum((sympy.sympify(p.dims[axis]) for p in parts), sympy.Integer(0)))
    size = tuple(length if j == axis else d for j, d in enumerate(first.dims))
    placed, start = [], sympy.Integer(0)
    for p in parts:
        if p.ndim != first.ndim or any(
            not same(a, b) for j, (a, b) in enumerate(zip(p.dims, first.dims, strict=True)) if j != axis
        ):
            raise ShapeError(f"cannot join {show(first.dims)} and {show(p.dims)} along axis {axis}")
        placed.append(build.put(p, [INDEX[j] + start if j == axis else INDEX[j] for j in range(p.ndim)], size))
        start = start + p.dims[axis]
    return build.add(*placed)


def hstack(parts: Sequence[Expr]) -> Expr:
    """Side by side: along the second axis, vectors along their only one."""
    return stack_along(parts, min(1, parts[0].ndim - 1) if parts else 0)


def vstack(parts: Sequence[Expr]) -> Expr:
    """One above another."""
    return stack_along(parts, 0)


def triangle(M: Expr, lower: bool, diagonal: int = 0) -> Expr:
    """M below (or above) a diagonal, zero elsewhere, on the last two axes."""
    i, j = INDEX[0], INDEX[1]
    inside = sympy.Heaviside(i - j + diagonal, 1) if lower else sympy.Heaviside(j - i - diagonal, 1)
    mask = build.constant(inside, M.dims[-2:])
    letters = build.swap_spec(M.ndim)
    return build.contract(f"{letters},{letters[-2:]}->{letters}", M, mask)


def structured(e: Expr) -> bool:
    """Can x @ e.T be computed without forming e?"""
    if isinstance(e, (AbstractOperator, Transpose, MatMul)):
        return True
    return isinstance(e, Scale) and structured(e.x)
