"""The language: what an equation is written with, beside the operators and the algebra of `ir`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy

from adaptc.equation import GivenSpec, LeafSpec
from adaptc.errors import EquationError, LeafError, ShapeError, user_location
from adaptc.initial import as_init
from adaptc.ir import algebra, build
from adaptc.ir.dims import Dim, Size, as_dim, as_shape, quotient, same_shape, show
from adaptc.ir.expr import Expr
from adaptc.ir.matrix import ATTACH, RANDOM, Dropout, Factor, Initial, Noise
from adaptc.ir.prims import Leaf, TopK
from adaptc.ir.rules import simplify
from adaptc.method import RESERVED, Trace, current_trace

CHANGING = ("param", "token", "output", "given")
DTYPES = ("float32", "float64", "bfloat16", "float16", "int32", "int64")

# ---------------------------------------------------------------------------- leaves and attach-stage values


def _declare(
    name: str,
    shape: Any,
    init: Any,
    trainable: bool,
    shared: str | None,
    seed: int | None,
    store: bool,
    dtype: Any,
) -> Leaf:
    trace = current_trace()
    if trace is None:
        raise EquationError(f"leaf '{name}' is declared outside an @adapter function")
    _check_name(trace, name, store, seed)
    start = as_init(init)
    size = as_shape(shape)
    kind = "integer" if getattr(start, "name", "") == "randperm" or "int" in str(dtype or "") else "real"
    leaf = Leaf(name, size, "param" if trainable else "frozen", kind)
    if isinstance(start, Expr) and not same_shape(start.dims, size):
        raise ShapeError(f"leaf '{name}' is {show(size)}, its initial value {show(start.dims)}")
    _check_start(trace, name, start, trainable, seed, store, dtype)
    where = user_location()
    known = None if dtype is None else str(dtype).removeprefix("torch.")
    trace.leaves[name] = LeafSpec(leaf, trainable, start, where, shared, seed, store, known)
    return leaf


def _check_name(trace: Trace, name: str, store: bool, seed: int | None) -> None:
    if not name.isidentifier() or name in RESERVED:
        raise LeafError(f"'{name}' cannot name a leaf: use an identifier other than {', '.join(RESERVED)}")
    if name in trace.leaves:
        raise LeafError(f"two leaves are named '{name}', the first at {trace.leaves[name].where}: rename one")
    if not store and seed is None:
        raise LeafError(f"leaf '{name}' is not stored and has no seed: give it one")


def _check_start(
    trace: Trace, name: str, start: Any, trainable: bool, seed: int | None, store: bool, dtype: Any
) -> None:
    late = _later(start, ("token", "output", "given")) if isinstance(start, Expr) else []
    if late:
        raise EquationError(f"leaf '{name}' starts from '{late[0]}', which does not exist when adapters are attached")
    if callable(start) and not store:
        raise LeafError(f"leaf '{name}' is drawn by a function: only named initialisers can be drawn again, store it")
    called = [s.name for s in trace.leaves.values() if s.seed == seed and callable(s.init)]
    if not store and called:
        raise LeafError(
            f"leaf '{name}' is drawn again after '{called[0]}', which a function draws: give it another seed"
        )
    _check_dtype(name, dtype)
    if trainable and "int" in str(dtype or ""):
        raise LeafError(f"leaf '{name}' is trained and cannot hold whole numbers")


def _check_dtype(name: str, dtype: Any) -> None:
    if dtype is not None and str(dtype).removeprefix("torch.") not in DTYPES:
        raise LeafError(f"leaf '{name}' has the dtype {dtype}: one of {', '.join(DTYPES)}")


def param(name: str, shape: Any, init: Any, *, shared: str | None = None, dtype: Any = None) -> Leaf:
    """A trainable leaf. `shared="key"`: one whole leaf for all layers of an adapter, as large as the largest."""
    return _declare(name, shape, init, True, shared, None, True, dtype)


def frozen(
    name: str,
    shape: Any,
    init: Any,
    *,
    shared: str | None = None,
    seed: int | None = None,
    store: bool = True,
    dtype: Any = None,
) -> Leaf:
    """A leaf that is not trained. `store=False` with a seed: never written to a file, drawn again in float32."""
    return _declare(name, shape, init, False, shared, seed, store, dtype)


def given(name: str, shape: Any, *, at: str = "call", default: float | None = None, dtype: Any = None) -> Expr:
    """A tensor from outside, by name.

    at="call": an argument of the forward, `layer(x, task=t)`, or `with ac.giving(model, task=t)`; its gradient flows
    back. A leading axis m is one row a token; one row an example is repeated over the example's tokens. dtype "int64":
    whole numbers, which index; else x's. default: a number that stands for it where it is not given.
    at="attach": a statistic of the layer from `ac.calibrate`: `gradient` (n, k), `second_moment` (k, k), or either
    with a tag of your own, as in "second_moment.safety".
    """
    trace = current_trace()
    if trace is None:
        raise EquationError(f"'{name}' is asked for outside an @adapter function")
    if at not in ("call", "attach"):
        raise EquationError(f'\'{name}\' is given at "call" or at "attach", not at {at!r}')
    known = None if dtype is None else str(dtype).removeprefix("torch.")
    _check_dtype(name, known)
    if at == "call" and (not name.isidentifier() or name in ("self", "input", "x", "model")):
        raise LeafError(f"no call can give '{name}': use another identifier")
    if name in trace.given:
        raise LeafError(f"'{name}' is asked for twice, first at {trace.given[name].where}: use its first value")
    kind = "integer" if "int" in (known or "") else "real"
    leaf = Leaf(f"given.{name}", as_shape(shape), "given" if at == "call" else "calibrated", kind)
    trace.given[name] = GivenSpec(leaf, at, default, user_location())
    return leaf if at == "call" else simplify(Initial(leaf))


def noise(shape: Any) -> Expr:
    """Entries from N(0, 1), new in every training forward; 0 in eval and in the merged weight."""
    return Noise(_random("noise"), as_shape(shape))


def dropout(M: Expr, p: float) -> Expr:
    """As torch: while training, entries are 0 with probability p and the others divided by 1 - p; else M."""
    if not 0 <= p <= 1:
        raise EquationError(f"a dropout probability lies between 0 and 1, got {p}")
    return Dropout(M, float(p), _random("dropout")) if p else M


def _random(what: str) -> int:
    trace = current_trace()
    if trace is None:
        raise EquationError(f"{what} is used outside an @adapter function")
    trace.random += 1  # place 0 is the layer's own dropout
    return trace.random


def penalty(expr: Any) -> None:
    """Add a scalar of the parameters to `ac.penalties(model)`; it is no part of W'."""
    trace = current_trace()
    if trace is None:
        raise EquationError("a penalty is declared outside an @adapter function")
    term = expr if isinstance(expr, Expr) else build.scale(expr, build.ones(()))
    late = _later(term, ("token", "output", "given"))
    if late:
        raise EquationError(f"a penalty cannot depend on '{late[0]}', which only a call has")
    if term.dims:
        raise ShapeError(f"a penalty is a scalar, got {show(term.dims)}: use sum or norm")
    if not build.is_zero(term):
        trace.penalties.append(simplify(term))


def initial(expr: Expr) -> Expr:
    """The value of `expr` at attach time, a constant of the equation; parameters stand for their initial values."""
    return simplify(Initial(expr))


def svd(M: Expr, r: Any) -> tuple[Expr, Expr, Expr]:
    """The r largest singular triples of an attach-stage matrix (n, k): U (n, r), S (r,), Vt (r, k).

    float32 or wider; the entry of largest magnitude in each column of U is positive.
    """
    n, k = _attach_matrix(M, "svd")
    size = as_dim(r)
    if isinstance(size, int) and any(isinstance(d, int) and size > d for d in (n, k)):
        raise ShapeError(f"svd: rank {size} of a matrix {show((n, k))}")
    return (
        Factor("svd.U", M, (n, size)),
        Factor("svd.S", M, (size,)),
        Factor("svd.Vt", M, (size, k)),
    )


def qr(M: Expr) -> tuple[Expr, Expr]:
    """Q (n, p) and R (p, k), p = min(n, k), of an attach-stage matrix."""
    n, k = _attach_matrix(M, "qr")
    p = _least(n, k)
    return Factor("qr.Q", M, (n, p)), Factor("qr.R", M, (p, k))


def lu(M: Expr) -> tuple[Expr, Expr, Expr]:
    """P (n, n), L (n, p), U (p, k) with P @ L @ U = M, p = min(n, k), of an attach-stage matrix."""
    n, k = _attach_matrix(M, "lu")
    p = _least(n, k)
    return Factor("lu.P", M, (n, n)), Factor("lu.L", M, (n, p)), Factor("lu.U", M, (p, k))


def pinv(M: Expr) -> Expr:
    """The pseudo-inverse (k, n) of an attach-stage matrix (n, k)."""
    n, k = _attach_matrix(M, "pinv")
    return Factor("pinv", M, (k, n))


def nonzero(M: Expr) -> Expr:
    """Where an attach-stage `topk` is 1, as whole numbers (M.ndim, count), in row-major order."""
    late = _later(M, CHANGING)
    if late:
        raise EquationError(f"nonzero needs a value that exists at attach time, but '{late[0]}' changes later")
    if not isinstance(M, TopK):
        raise EquationError("nonzero takes a topk(...), so that the number of places is known")
    rest = 1 if M.axis is None else build.count(tuple(d for j, d in enumerate(M.dims) if j != M.axis))
    return Factor("nonzero", M, (M.ndim, as_dim(M.count * rest)))


def _least(n: Dim, k: Dim) -> Dim:
    return min(n, k) if isinstance(n, int) and isinstance(k, int) else as_dim(sympy.Min(n, k))


def _attach_matrix(M: Expr, what: str) -> tuple[Dim, Dim]:
    late = _later(M, CHANGING)
    if late:
        raise EquationError(
            f"{what} needs a value that exists at attach time, but '{late[0]}' changes later: use initial()"
        )
    if M.ndim != 2:
        raise ShapeError(f"{what} needs a matrix, got {show(M.dims)}")
    return M.dims[0], M.dims[1]


def _later(M: Expr, roles: tuple[str, ...]) -> list[str]:
    """Names of leaves of these roles that M's value changes with."""
    if isinstance(M, ATTACH):
        return []
    if isinstance(M, Leaf):
        return [M.name] if M.role in roles else []
    if isinstance(M, RANDOM):
        return [type(M).__name__.lower()] if "token" in roles else []
    return [name for child in M.children for name in _later(child, roles)]


def detach(expr: Expr) -> Expr:
    """The value of expr, a constant for derivatives."""
    return build.detach(expr)


# ---------------------------------------------------------------------------- sizes


def divide(k: Any, b: Any) -> Any:
    """The size k / b. Raises ShapeError naming both if it is not whole."""
    return _sized(quotient(as_dim(k), as_dim(b)))


def factor_pair(n: Any, near: int | None = None) -> tuple[int, int]:
    """(a, n / a) with a <= n / a: `near` if it divides n, else the largest divisor below it; None: near sqrt n."""
    size = n.__index__()  # a symbolic size refuses
    limit = int(size**0.5)
    if near is not None and size % near == 0:
        return min(near, size // near), max(near, size // near)
    if near is not None:
        limit = min(limit, near)
    a = next((d for d in range(max(limit, 1), 0, -1) if size % d == 0), 1)
    return a, size // a


def _sized(d: Dim) -> Any:
    return d if isinstance(d, int) else Size(d)


# ---------------------------------------------------------------------------- elementwise functions by name


def _named(name: str, doc: str) -> Callable[..., Expr]:
    def function(*args: Any) -> Expr:
        return algebra.elementwise(name, *args)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return function


exp = _named("exp", "exp(M) entry by entry.")
log = _named("log", "log(M) entry by entry.")
sqrt = _named("sqrt", "The square root entry by entry.")
abs = _named("abs", "The absolute value entry by entry.")  # noqa: A001 - torch's name
sin = _named("sin", "sin(M) entry by entry.")
cos = _named("cos", "cos(M) entry by entry.")
tanh = _named("tanh", "tanh(M) entry by entry.")
sigmoid = _named("sigmoid", "1 / (1 + exp(-M)) entry by entry.")
relu = _named("relu", "max(M, 0) entry by entry, derivative 0 at 0.")
silu = _named("silu", "M * sigmoid(M) entry by entry.")
gelu = _named("gelu", "M * Phi(M) entry by entry, Phi the normal distribution function.")
round = _named("round", "The nearest whole number entry by entry, ties to even: no derivative.")  # noqa: A001
maximum = _named("maximum", "The larger of two entries; a tie shares the derivative.")
minimum = _named("minimum", "The smaller of two entries; a tie shares the derivative.")


def tril(M: Expr, diagonal: int = 0) -> Expr:
    """The lower triangle on the last two axes."""
    return algebra.triangle(M, lower=True, diagonal=diagonal)


def triu(M: Expr, diagonal: int = 0) -> Expr:
    """The upper triangle on the last two axes."""
    return algebra.triangle(M, lower=False, diagonal=diagonal)
