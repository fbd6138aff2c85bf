"""`@adapter` turns a function into a `Method`, calling that gives an `Adapter`, tracing that its `Equation`."""

from __future__ import annotations

import difflib
import functools
import inspect
import numbers
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from adaptc.equation import STAND_IN, Equation, GivenSpec, Layer, LeafSpec
from adaptc.errors import (
    AdaptcError,
    EquationError,
    HyperparameterError,
    LeafError,
    ShapeError,
    is_ours,
)
from adaptc.ir import build
from adaptc.ir.dims import TOKENS, Dim, same_shape, show, size_symbol
from adaptc.ir.expr import Expr, postorder, substitute
from adaptc.ir.matrix import ATTACH, RANDOM, Initial, Transpose
from adaptc.ir.prims import Leaf, Scale
from adaptc.ir.printer import formula
from adaptc.ir.rules import simplify
from adaptc.ir.sympy_bridge import to_sympy

ARGUMENTS = ("W", "bias", "x", "y")
RESERVED = (*ARGUMENTS, "gy", "layer", "training", "seed")
METHODS: dict[str, list[Method]] = {}
"""Every method that has been declared, by name; a name may be declared in several modules."""


@dataclass
class Trace:
    """What the equation that is being traced has declared so far. random: its noise and dropout."""

    leaves: dict[str, LeafSpec] = field(default_factory=dict)
    given: dict[str, GivenSpec] = field(default_factory=dict)
    penalties: list[Expr] = field(default_factory=list)
    random: int = 0


_trace: ContextVar[Trace | None] = ContextVar("adaptc_trace", default=None)


def current_trace() -> Trace | None:
    """The equation that is being traced, if any."""
    return _trace.get()


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
        self.__name__, self.__qualname__, self.__module__ = (
            self.name,
            function.__qualname__,
            function.__module__,
        )
        code = getattr(function, "__code__", None)
        self.where = f"{code.co_filename}:{code.co_firstlineno}" if code else "<unknown>"
        self.arguments, defaults = self._signature()
        self.defaults = {k: v if v is inspect.Parameter.empty else self._plain(k, v) for k, v in defaults.items()}
        others = [m for m in METHODS.get(self.name, []) if m.module != self.module]
        METHODS[self.name] = [*others, self]

    def _signature(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        arguments, defaults = [], {}
        for p in inspect.signature(self.function).parameters.values():
            if p.kind is p.KEYWORD_ONLY:
                if p.name in ARGUMENTS:
                    raise EquationError(f"method '{self.name}': the keyword '{p.name}' is reserved", self.where)
                defaults[p.name] = p.default
            elif p.name in ARGUMENTS and p.kind is p.POSITIONAL_OR_KEYWORD:
                arguments.append(p.name)
            else:
                raise EquationError(
                    f"method '{self.name}': '{p.name}' is not one of {', '.join(ARGUMENTS)}; "
                    f"write hyper-parameters after a *, as in `def {self.name}(W, *, {p.name}=8)`",
                    self.where,
                )
        if arguments != [a for a in ARGUMENTS if a in arguments] or not arguments:
            raise EquationError(
                f"method '{self.name}' takes {', '.join(ARGUMENTS)}, some of them, in this order",
                self.where,
            )
        return tuple(arguments), defaults

    def __call__(self, **hyper: Any) -> Adapter:
        for name in hyper:
            if name not in self.defaults or name == "layer":
                near = difflib.get_close_matches(name, self.defaults, 1)
                hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(self.defaults) or 'none'}"
                raise HyperparameterError(f"method '{self.name}' has no hyper-parameter '{name}': {hint}", self.where)
        bound = {**self.defaults, **{k: self._plain(k, v) for k, v in hyper.items()}}
        bound.pop("layer", None)
        missing = [k for k, v in bound.items() if v is inspect.Parameter.empty]
        if missing:
            raise HyperparameterError(f"method '{self.name}' needs {', '.join(missing)}", self.where)
        return Adapter(self, tuple(bound.items()))

    def _plain(self, name: str, value: Any) -> Any:
        """Hyper-parameters are numbers, strings, None and tuples of them: they are written to files."""
        if isinstance(value, (list, tuple)):
            return tuple(self._plain(name, v) for v in value)
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (numbers.Integral, numbers.Real)):  # numpy's
            return int(value) if isinstance(value, numbers.Integral) else float(value)
        raise HyperparameterError(
            f"method '{self.name}': '{name}' must be a number, string or tuple, got {type(value).__name__}", self.where
        )

    def __reduce__(self) -> str:
        return self.__qualname__

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in self.defaults.items())
        return f"{self.name}({inside})"


def adapter(function: Callable[..., Any] | None = None, *, identity: bool = True) -> Any:
    """Declare a method: a function of W (n, k), bias (n,), x (m, k), y (m, n), each optional, in this order.

    Without x and y it returns the adapted weight W', or (W', bias') if it takes the bias; with x or y it returns y'.
    Hyper-parameters are keyword-only. identity=False: W' differs from W at attach time.
    Raises: EquationError with the file and line of the equation.
    """
    if function is None:
        return functools.partial(adapter, identity=identity)
    return Method(function, identity)


@dataclass(frozen=True, eq=False)
class Adapter:
    """A method with its hyper-parameters bound: hashable, printable, picklable. r=3 and r=3.0 are two adapters."""

    method: Method
    hyper: tuple[tuple[str, Any], ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adapter) and self.method is other.method and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash((id(self.method), repr(self)))

    @property
    def name(self) -> str:
        """The method's name."""
        return self.method.name

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.hyper)})"

    def trace(self, n: Dim, k: Dim, layer: Layer | None = None) -> Equation:
        """The equation at one layer shape; `layer` reaches methods that ask for it. Raises EquationError with the
        user's file and line."""
        asks = "layer" in self.method.defaults
        return _traced(self, n, k, (layer or STAND_IN) if asks else None)

    @property
    def formula(self) -> str:
        """The equation as text, with symbolic sizes where the method allows them, else at a size that it names."""
        return symbolic(self)[0]

    def to_sympy(self) -> Any:
        """The adapted weight (or output) as a SymPy matrix expression of symbolic sizes."""
        equation = symbolic(self)[1]
        return to_sympy(next(e for e in (equation.weight, equation.output) if e is not None))


@functools.lru_cache(maxsize=4096)
def _traced(adapter_: Adapter, n: Dim, k: Dim, layer: Layer | None) -> Equation:
    method = adapter_.method
    known = {"W": W_leaf(n, k), "bias": bias_leaf(n), "x": x_leaf(k), "y": y_leaf(n)}
    trace, token = Trace(), None
    more = {} if layer is None else {"layer": layer}
    try:
        token = _trace.set(trace)
        result = method.function(*(known[a] for a in method.arguments), **dict(adapter_.hyper), **more)
    except AdaptcError:
        raise
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_ours(f.filename)]
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else method.where
        told = "" if layer is None or layer.index is not None else f" (the layer's name '{layer.name}' holds no number)"
        what = f"{adapter_} at n = {n}, k = {k}: {type(error).__name__}: {error}{told}"
        raise EquationError(what, where) from error
    finally:
        if token is not None:
            _trace.reset(token)
    weight, bias, output = _results(method, result, known)
    leaves, given = _used_leaves(trace, [weight, bias, output]), tuple(trace.given.values())
    penalties = tuple(trace.penalties)
    equation = Equation(adapter_, n, k, weight, bias, output, leaves, (), method.where, given, penalties, layer)
    return _hoist(_checked(equation))


def _used_leaves(trace: Trace, results: list[Expr | None]) -> tuple[LeafSpec, ...]:
    """The declared leaves; one that a function draws holds whole numbers if the equation uses it as an index."""
    reached = [e for e in postorder(*(r for r in results if r is not None)) if isinstance(e, Leaf)]
    indices = {e.name: e for e in reached if e.kind == "integer" and e.role == "frozen"}
    found = []
    for spec in trace.leaves.values():
        index = indices.get(spec.name, spec.leaf)
        if index is not spec.leaf and (isinstance(spec.init, Expr) or not callable(spec.init)):
            raise LeafError(f"'{spec.name}' is used as an index and does not hold whole numbers", spec.where)
        found.append(replace(spec, leaf=index))
    return tuple(found)


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
    penalties = tuple(map(go, equation.penalties))
    names = {s.name for s in equation.leaves}
    for leaf in made.values():
        if leaf.name in names:
            raise LeafError(
                f"the leaf name '{leaf.name}' is taken by a value computed at attach",
                equation.where,
            )
    attach = tuple((leaf, e) for e, leaf in made.items())
    weight, bias, output = results
    return replace(equation, weight=weight, bias=bias, output=output, attach=attach, penalties=penalties)


@functools.lru_cache(maxsize=4096)
def _fixed(e: Expr) -> bool:
    """Is a value known at attach time, and made from a factorisation or initial value (W itself apart)?"""
    if isinstance(e, ATTACH):
        return True
    if isinstance(e, (Leaf, *RANDOM)) or not e.children:
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
    name = f"{e.A.name.removeprefix('given.')}_initial" if initial else f"attach_{position}"  # type: ignore[attr-defined]
    return Leaf(name.replace(".", "_"), e.dims, "attach", e.kind)


# ---------------------------------------------------------------------------- formulas


def symbols() -> tuple[Dim, Dim]:
    """The sizes of a formula: n outputs, k inputs."""
    return size_symbol("n"), size_symbol("k")


CONCRETE = 64


@functools.lru_cache(maxsize=256)
def symbolic(adapter_: Adapter, n: int = CONCRETE, k: int = CONCRETE) -> tuple[str, Equation]:
    """The text and the equation. An equation that asks a symbolic size for a number is shown at n x k."""
    try:
        equation = adapter_.trace(*symbols())
    except (AdaptcError, TypeError, ValueError):
        equation = adapter_.trace(n, k)
        return f"{text(equation)}    [at n = {n}, k = {k}]", equation
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
    return dict[Expr, Expr](equation.attach)
