"""The language: `@adapter` turns a function into a `Method`; tracing it once per layer shape gives its `Equation`."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import sympy

from adaptc.errors import EquationError, HyperparameterError, LeafError, ShapeError, UnsupportedError, user_location
from adaptc.initial import as_init
from adaptc.ir import algebra, build
from adaptc.ir.dims import TOKENS, Dim, Shape, Size, as_dim, as_shape, quotient, same_shape, show, size_symbol
from adaptc.ir.expr import Expr, postorder
from adaptc.ir.matrix import ATTACH, Factor, Initial, Transpose
from adaptc.ir.prims import Leaf, Scale
from adaptc.ir.rules import simplify

ARGUMENTS = ("W", "bias", "x", "y")
RESERVED = (*ARGUMENTS, "gy", "layer")
METHODS: dict[str, list[Method]] = {}
"""Every method that has been declared, by name; a name may be declared in several modules."""


@dataclass(frozen=True)
class LeafSpec:
    """A leaf of an equation and how it comes to be.

    dtype None: float32 on a 16-bit or quantised base, else the base's. shared: the key of one whole tensor for all
    layers. store False: not written to files, drawn again from its seed.
    """

    leaf: Leaf
    trainable: bool
    init: Any
    where: str
    shared: str | None = None
    seed: int | None = None
    store: bool = True
    dtype: str | None = None

    @property
    def name(self) -> str:
        """The leaf's name."""
        return self.leaf.name


@dataclass(frozen=True)
class Equation:
    """A traced adapter: the adapted weight and bias, or the adapted output, over named leaves.

    attach: leaves that hold values computed at attach time, and what they are.
    """

    adapter: Adapter
    n: Dim
    k: Dim
    weight: Expr | None
    bias: Expr | None
    output: Expr | None
    leaves: tuple[LeafSpec, ...]
    attach: tuple[tuple[Leaf, Expr], ...]
    where: str

    @property
    def results(self) -> tuple[Expr | None, Expr | None, Expr | None]:
        """The adapted weight, bias and output."""
        return self.weight, self.bias, self.output

    @property
    def written(self) -> Expr:
        """What the equation says, as one expression of its leaves."""
        parts = [e for e in (self.output, self.weight, self.bias) if e is not None]
        return parts[0] if len(parts) == 1 else _Pair(tuple(parts))

    @property
    def is_output_form(self) -> bool:
        """Does the method give the layer's output rather than its weight?"""
        return self.output is not None


class _Pair(Expr):
    """Several results of one equation, side by side."""

    parts: tuple[Expr, ...]

    def infer(self) -> tuple[Shape, str]:
        return (), "real"


@dataclass
class _Trace:
    leaves: dict[str, LeafSpec] = field(default_factory=dict)


_trace: ContextVar[_Trace | None] = ContextVar("adaptc_trace", default=None)


def W_leaf(n: Dim, k: Dim) -> Leaf:
    """The base weight."""
    return Leaf("W", (n, k), "weight")


def bias_leaf(n: Dim) -> Leaf:
    """The base bias."""
    return Leaf("bias", (n,), "bias")


def x_leaf(k: Dim) -> Leaf:
    """The token matrix."""
    return Leaf("x", (TOKENS, k), "token")


def y_leaf(n: Dim) -> Leaf:
    """The layer's output so far."""
    return Leaf("y", (TOKENS, n), "output")


class Method:
    """An equation with its hyper-parameters open. Calling it binds them: `lora(r=16)`."""

    def __init__(self, function: Callable[..., Any], identity: bool) -> None:
        self.function = function
        self.identity = identity
        self.name = function.__name__
        self.module = function.__module__
        self.__doc__ = function.__doc__
        self.__name__, self.__qualname__, self.__module__ = self.name, function.__qualname__, function.__module__
        code = getattr(function, "__code__", None)
        self.where = f"{code.co_filename}:{code.co_firstlineno}" if code else "<unknown>"
        self.arguments, self.defaults = self._signature()
        others = [m for m in METHODS.get(self.name, []) if m.module != self.module]
        METHODS[self.name] = [*others, self]

    def _signature(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        arguments, defaults = [], {}
        for p in inspect.signature(self.function).parameters.values():
            if p.kind is p.KEYWORD_ONLY:
                if p.name in ARGUMENTS:
                    raise EquationError(f"method '{self.name}': the keyword '{p.name}' is reserved", self.where)
                defaults[p.name] = p.default
            elif p.name in ARGUMENTS:
                arguments.append(p.name)
            else:
                raise EquationError(
                    f"method '{self.name}': '{p.name}' is not one of {', '.join(ARGUMENTS)}; "
                    f"write hyper-parameters after a *, as in `def {self.name}(W, *, {p.name}=8)`",
                    self.where,
                )
        if arguments != [a for a in ARGUMENTS if a in arguments] or not arguments:
            raise EquationError(f"method '{self.name}' takes {', '.join(ARGUMENTS)}, some of them, in this order", self.where)
        return tuple(arguments), defaults

    def __call__(self, **hyper: Any) -> Adapter:
        for name in hyper:
            if name not in self.defaults:
                near = difflib.get_close_matches(name, self.defaults, 1)
                hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(self.defaults) or 'none'}"
                raise HyperparameterError(f"method '{self.name}' has no hyper-parameter '{name}': {hint}")
        bound = {**self.defaults, **{k: _plain(k, v) for k, v in hyper.items()}}
        missing = [k for k, v in bound.items() if v is inspect.Parameter.empty and k != "layer"]
        if missing:
            raise HyperparameterError(f"method '{self.name}' needs {', '.join(missing)}")
        return Adapter(self, tuple(bound.items()))

    def __reduce__(self) -> str:
        return self.__qualname__

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in self.defaults.items())
        return f"{self.name}({inside})"


def _plain(name: str, value: Any) -> Any:
    """Hyper-parameters are numbers, strings, None and tuples of them: they are written to files."""
    if isinstance(value, (list, tuple)):
        return tuple(_plain(name, v) for v in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise HyperparameterError(f"hyper-parameter '{name}' must be a number, string or tuple, got {type(value).__name__}")


def adapter(function: Callable[..., Any] | None = None, *, identity: bool = True) -> Any:
    """Declare a method: a function of W (n, k), bias (n,), x (m, k), y (m, n), each optional, in this order.

    Without x and y it returns the adapted weight W', or (W', bias') if it takes the bias; with x or y it returns y'.
    Hyper-parameters are keyword-only. identity=False: W' differs from W at attach time.
    Raises: EquationError with the file and line of the equation.
    """
    if function is None:
        return functools.partial(adapter, identity=identity)
    return Method(function, identity)


@dataclass(frozen=True)
class Adapter:
    """A method with its hyper-parameters bound: hashable, printable, picklable."""

    method: Method
    hyper: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """The method's name."""
        return self.method.name

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.hyper)})"

    def trace(self, n: Dim, k: Dim) -> Equation:
        """The equation at one layer shape. Raises EquationError with the user's file and line."""
        return _traced(self, n, k)


@functools.lru_cache(maxsize=1024)
def _traced(adapter_: Adapter, n: Dim, k: Dim) -> Equation:
    method = adapter_.method
    if "layer" in method.defaults:
        raise UnsupportedError(f"method '{method.name}' asks for `layer`, which this release does not pass [{method.where}]")
    known = {"W": W_leaf(n, k), "bias": bias_leaf(n), "x": x_leaf(k), "y": y_leaf(n)}
    trace, token = _Trace(), None
    try:
        token = _trace.set(trace)
        result = method.function(*(known[a] for a in method.arguments), **dict(adapter_.hyper))
    finally:
        if token is not None:
            _trace.reset(token)
    weight, bias, output = _results(method, result, known)
    equation = Equation(adapter_, n, k, weight, bias, output, tuple(trace.leaves.values()), (), method.where)
    return _hoist(_checked(equation))


def _results(method: Method, result: Any, known: dict[str, Leaf]) -> tuple[Expr | None, Expr | None, Expr | None]:
    """The adapted weight, bias or output, each of the right shape."""
    given = set(method.arguments)
    wanted = [("y'", known["y"].dims)] if given & {"x", "y"} else [("W'", known["W"].dims)]
    if "bias" in given and not given & {"x", "y"}:
        wanted.append(("bias'", known["bias"].dims))
    values = result if isinstance(result, tuple) else (result,)
    if len(values) != len(wanted):
        names = ", ".join(name for name, _ in wanted)
        raise EquationError(f"method '{method.name}' returns {len(values)} values, wanted {names}", method.where)
    for value, (name, shape) in zip(values, wanted, strict=True):
        if not isinstance(value, Expr):
            raise EquationError(f"method '{method.name}' returns {type(value).__name__} for {name}", method.where)
        if not same_shape(value.dims, shape):
            raise ShapeError(
                f"method '{method.name}' returns {name} of shape {show(value.dims)}, the layer needs {show(shape)}",
                method.where,
            )
        if value.kind == "complex":
            raise EquationError(f"method '{method.name}' returns a complex {name}: end it with real()", method.where)
    checked = [simplify(v) for v in values]
    if given & {"x", "y"}:
        return None, None, checked[0]
    return checked[0], checked[1] if len(checked) > 1 else None, None


def _checked(equation: Equation) -> Equation:
    reached = set(postorder(equation.written))
    for spec in equation.leaves:
        if spec.trainable and spec.leaf not in reached:
            raise LeafError(
                f"method '{equation.adapter.name}': the parameter '{spec.name}' never reaches the result: "
                "use it or remove it",
                spec.where,
            )
    return equation


def _hoist(equation: Equation) -> Equation:
    """Values that exist from attach time on become leaves: each largest part that is no larger than its own parts."""
    made: dict[Expr, Leaf] = {}

    def go(e: Expr) -> Expr:
        if e in made:
            return made[e]
        if isinstance(e, ATTACH) or (_fixed(e) and _smaller(e)):
            made[e] = _attach_leaf(e, len(made))
            return made[e]
        return e.rebuild(go)

    results = [None if e is None else go(e) for e in (equation.weight, equation.bias, equation.output)]
    names = {s.name for s in equation.leaves}
    for leaf in made.values():
        if leaf.name in names:
            raise LeafError(f"the leaf name '{leaf.name}' is taken by a value computed at attach", equation.where)
    attach = tuple((leaf, e) for e, leaf in made.items())
    return replace(equation, weight=results[0], bias=results[1], output=results[2], attach=attach)


@functools.lru_cache(maxsize=4096)
def _fixed(e: Expr) -> bool:
    """Is a value known at attach time, and made from a factorisation or initial value (W itself apart)?"""
    if isinstance(e, ATTACH):
        return True
    if isinstance(e, Leaf) or not e.children:
        return False
    loose = [c for c in e.children if not _fixed(c)]
    return len(loose) < len(e.children) and all(isinstance(c, Leaf) and c.role == "frozen" for c in loose)


def _smaller(e: Expr) -> bool:
    """Is keeping e no larger than keeping what it is made from? A number or a transpose costs nothing to redo."""
    if isinstance(e, (Scale, Transpose)):
        return False
    return _room(e) is not None and _entries(e) == _room(e)


@functools.lru_cache(maxsize=4096)
def _room(e: Expr) -> int | None:
    """Entries to keep for a fixed value, in the cheapest way; None with symbolic sizes."""
    own = _entries(e)
    if own is None or isinstance(e, (*ATTACH, Leaf)) or not e.children:
        return own
    parts = [_room(c) for c in e.children]
    return None if None in parts else min(own, sum(p for p in parts if p is not None))


def _entries(e: Expr) -> int | None:
    return int(build.count(e.dims)) if all(isinstance(d, int) for d in e.dims) else None


def _attach_leaf(e: Expr, position: int) -> Leaf:
    initial = isinstance(e, Initial) and isinstance(e.A, Leaf)
    name = f"{e.A.name}_initial" if initial else f"attach_{position}"  # type: ignore[attr-defined]
    return Leaf(name, e.dims, "attach")


# ---------------------------------------------------------------------------- leaves and attach-stage values


def _declare(
    name: str, shape: Any, init: Any, trainable: bool, shared: str | None, seed: int | None, store: bool, dtype: Any
) -> Leaf:
    trace = _trace.get()
    if trace is None:
        raise EquationError(f"leaf '{name}' is declared outside an @adapter function")
    if not name.isidentifier() or name in RESERVED:
        raise LeafError(f"'{name}' cannot name a leaf: use an identifier other than {', '.join(RESERVED)}")
    if name in trace.leaves:
        raise LeafError(f"two leaves are named '{name}', the first at {trace.leaves[name].where}: rename one")
    if not store and seed is None:
        raise LeafError(f"leaf '{name}' is not stored and has no seed: give it one")
    start = as_init(init)
    size = as_shape(shape)
    kind = "integer" if getattr(start, "name", "") == "randperm" or "int" in str(dtype or "") else "real"
    leaf = Leaf(name, size, "param" if trainable else "frozen", kind)
    if isinstance(start, Expr) and not same_shape(start.dims, size):
        raise ShapeError(f"leaf '{name}' is {show(size)}, its initial value {show(start.dims)}")
    where = user_location()
    known = None if dtype is None else str(dtype).removeprefix("torch.")
    trace.leaves[name] = LeafSpec(leaf, trainable, start, where, shared, seed, store, known)
    return leaf


def param(name: str, shape: Any, init: Any, *, shared: str | None = None, dtype: Any = None) -> Leaf:
    """A trainable leaf. `shared="key"`: one whole leaf for all layers of an adapter, as large as the largest."""
    return _declare(name, shape, init, True, shared, None, True, dtype)


def frozen(
    name: str, shape: Any, init: Any, *, shared: str | None = None, seed: int | None = None, store: bool = True, dtype: Any = None
) -> Leaf:
    """A leaf that is not trained. `store=False` with a seed: never written to a file, drawn again in float32."""
    return _declare(name, shape, init, False, shared, seed, store, dtype)


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
    return Factor("svd.U", M, (n, size)), Factor("svd.S", M, (size,)), Factor("svd.Vt", M, (size, k))


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


def _least(n: Dim, k: Dim) -> Dim:
    return min(n, k) if isinstance(n, int) and isinstance(k, int) else as_dim(sympy.Min(n, k))


def _attach_matrix(M: Expr, what: str) -> tuple[Dim, Dim]:
    late = [e.name for e in postorder(M) if isinstance(e, Leaf) and e.role in ("param", "token", "output")]
    if late and not isinstance(M, Initial):
        raise EquationError(f"{what} needs a value that exists at attach time, but '{late[0]}' changes later: use initial()")
    if M.ndim != 2:
        raise ShapeError(f"{what} needs a matrix, got {show(M.dims)}")
    return M.dims[0], M.dims[1]


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


def symbols() -> tuple[Dim, Dim]:
    """The sizes of a formula: n outputs, k inputs."""
    return size_symbol("n"), size_symbol("k")


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


