"""Values at attach time: drawn, computed from W, or taken from a whole tensor that layers share."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adaptc.equation import Equation, LeafSpec
from adaptc.errors import LeafError
from adaptc.initial import Init
from adaptc.ir.dims import Shape, show
from adaptc.ir.expr import Expr, postorder
from adaptc.ir.prims import Leaf
from adaptc.method import W_leaf
from adaptc.runtime.reference import Evaluator

Generator = torch.Generator | None
DRAWN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults are


@dataclass
class Wholes:
    """The shared leaves of one adapter name: sizes as large as the largest layer's, and values once drawn."""

    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)  # of those that are trained

    def forget(self) -> None:
        """Drop the values, keep the sizes."""
        self.values, self.parameters = {}, {}

    def grow(self, equation: Equation) -> None:
        """Make room for a layer that has not been drawn yet."""
        for spec in equation.leaves:
            if spec.shared is not None:
                size = _numbers(spec.leaf.dims)
                old = self.sizes.get(spec.shared, size)
                self.sizes[spec.shared] = tuple(map(max, old, size))


@torch.no_grad()
def attach(
    equation: Equation,
    weight: Tensor,
    wholes: Wholes,
    statistics: Mapping[str, Tensor] | None = None,
    known: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The value of every leaf of an equation, by name; shared leaves whole.

    weight: the base W (n, k), dequantised, without adapters; on the meta device there are sizes and no values.
    statistics: what `calibrate` measured on this layer. known: leaves that have their values already.
    Values are computed in float32 or wider, then cast.
    """
    if weight.is_meta:
        return _sizes_alone(equation, weight, wholes)
    with torch.autocast(weight.device.type, enabled=False):
        return _attach(equation, weight, wholes, statistics or {}, known or {})


def _attach(
    equation: Equation, weight: Tensor, wholes: Wholes, statistics: Mapping[str, Tensor], known: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    W = weight.detach().to(wide)
    env: dict[Expr, Tensor] = {W_leaf(equation.n, equation.k): W, **_measured(equation, W, statistics)}
    evaluate = Evaluator(env, wide)  # one, so that a matrix is factored once
    generators: dict[int, torch.Generator] = {}
    values: dict[str, Tensor] = {}
    for spec in equation.leaves:
        generator = None
        if spec.seed is not None:
            generator = generators.setdefault(spec.seed, torch.Generator().manual_seed(spec.seed))
        whole = known[spec.name] if spec.name in known else _value(spec, W, evaluate, generator, wholes)
        ready = spec.name in known or spec.shared in wholes.values
        dtype = leaf_dtype(spec, weight.dtype)
        values[spec.name] = whole if ready else whole.to(weight.device, dtype, copy=True).contiguous()
        if spec.shared is not None:
            wholes.values[spec.shared] = values[spec.name]
        evaluate.values[spec.leaf] = _to(cut(values[spec.name], spec.leaf.dims), wide)
    for leaf, expr in equation.attach:
        value = evaluate(expr)
        dtype = default_dtype(weight.dtype) if value.is_floating_point() else torch.int64
        values[leaf.name] = value.to(dtype, copy=True).contiguous()
    return values


def _measured(equation: Equation, W: Tensor, statistics: Mapping[str, Tensor]) -> dict[Expr, Tensor]:
    """The statistics an equation asks for at attach. Raises LeafError naming the one that is missing."""
    found: dict[Expr, Tensor] = {}
    for g in equation.given:
        if g.at != "attach":
            continue
        size = _numbers(g.leaf.dims)
        if g.name not in statistics and g.default is None:
            raise LeafError(
                f"'{equation.adapter.name}' needs '{g.name}' of the layer: "
                f'run ac.calibrate(model, batches, of="{g.name}") before attaching',
                g.where,
            )
        value = statistics.get(g.name, torch.full(size, float(g.default or 0)))
        if tuple(value.shape) != size:
            raise LeafError(f"'{g.name}' is {show(size)}, calibrate measured {show(tuple(value.shape))}", g.where)
        found[g.leaf] = value.to(W.device, W.dtype)
    return found


def _sizes_alone(equation: Equation, weight: Tensor, wholes: Wholes) -> dict[str, Tensor]:
    values = {}
    for spec in equation.leaves:
        size = _numbers(spec.leaf.dims)
        if spec.shared is not None:
            size = wholes.sizes.get(spec.shared, size)
        value = torch.empty(size, dtype=leaf_dtype(spec, weight.dtype), device="meta")
        values[spec.name] = wholes.values.setdefault(spec.shared, value) if spec.shared else value
    for leaf, _ in equation.attach:
        dtype = torch.int64 if leaf.kind == "integer" else default_dtype(weight.dtype)
        values[leaf.name] = torch.empty(_numbers(leaf.dims), dtype=dtype, device="meta")
    return values


def from_weight(equation: Equation) -> set[str]:
    """Names of the leaves whose values come from W or from what was measured on the layer."""
    sources: set[Expr] = {W_leaf(equation.n, equation.k), *(g.leaf for g in equation.given)}
    found: set[str] = set()
    starts = [(s.leaf, s.init) for s in equation.leaves]
    for leaf, start in (*starts, *equation.attach):
        called = callable(start) and not isinstance(start, Expr) and "W" in inspect.signature(start).parameters
        if called or (isinstance(start, Expr) and sources & set(postorder(start))):
            found.add(leaf.name)
            sources.add(leaf)
    return found


def _to(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _value(
    spec: LeafSpec,
    W: Tensor,
    evaluate: Evaluator,
    generator: Generator,
    wholes: Wholes,
) -> Tensor:
    size = _numbers(spec.leaf.dims)
    if spec.shared is not None:
        if spec.shared in wholes.values:
            have = tuple(wholes.values[spec.shared].shape)
            if any(a > b for a, b in zip(size, have, strict=True)):
                raise LeafError(
                    f"the shared leaf '{spec.name}' is {show(have)}, this layer needs {show(size)}: "
                    "inject all layers at once",
                    spec.where,
                )
            return wholes.values[spec.shared]
        size = wholes.sizes.get(spec.shared, size)
    if isinstance(spec.init, Init):
        drawn = draw(spec.init, size, generator, spec)
        if tuple(drawn.shape) != size:
            raise LeafError(
                f"'{spec.name}' is {show(size)}, {spec.init} gives {show(tuple(drawn.shape))}",
                spec.where,
            )
        return drawn
    if isinstance(spec.init, Expr):
        return evaluate(spec.init)
    return _called(spec, W, generator, size)


def _called(spec: LeafSpec, W: Tensor, generator: Generator, size: tuple[int, ...]) -> Tensor:
    accepted = inspect.signature(spec.init).parameters
    given = {k: v for k, v in (("W", W), ("generator", generator)) if k in accepted}
    value = torch.as_tensor(spec.init(**given))
    if spec.leaf.kind == "integer" and value.is_floating_point() and bool((value != value.round()).any()):
        raise LeafError(f"the initialiser of '{spec.name}', an index, gave fractions: wanted whole numbers", spec.where)
    if tuple(value.shape) != size:
        raise LeafError(
            f"the initialiser of '{spec.name}' gave {show(tuple(value.shape))}, wanted {show(size)}",
            spec.where,
        )
    return value


def draw(init: Init, size: tuple[int, ...], generator: Generator, spec: LeafSpec) -> Tensor:
    """A tensor from a named initialiser, on the CPU: random ones in float32, numbers exact."""
    empty = torch.empty(size, **DRAWN)
    match init.name:
        case "zeros" | "ones" | "constant":
            number = init.numbers[0] if init.numbers else float(init.name == "ones")
            return torch.full(size, number, dtype=torch.float64, device="cpu")
        case "identity":
            return torch.eye(*size[-2:], **DRAWN).expand(size).clone()
        case "normal":
            return empty.normal_(init.numbers[1], init.numbers[0], generator=generator)
        case "uniform":
            return empty.uniform_(*init.numbers, generator=generator)
        case "bernoulli":
            return empty.bernoulli_(init.numbers[0], generator=generator)
        case "randperm":
            return torch.randperm(int(init.numbers[0]), generator=generator, device="cpu")[: size[0]]
        case "orthogonal":
            return torch.nn.init.orthogonal_(empty, generator=generator)
        case "paired_kaiming":
            return _paired(size, generator, spec)
        case _:
            a = init.numbers[0] if init.numbers else math.sqrt(5)
            return _kaiming(size, a, generator)


def _paired(size: tuple[int, ...], generator: Generator, spec: LeafSpec) -> Tensor:
    """Columns 0 and 1 equal, 2 and 3 equal, ...: reflections in them cancel."""
    if size[-1] % 2:
        raise LeafError(f"'{spec.name}': paired_kaiming needs an even number of columns, got {size[-1]}", spec.where)
    return _kaiming((*size[:-1], size[-1] // 2), math.sqrt(5), generator).repeat_interleave(2, -1)


def _kaiming(size: tuple[int, ...], a: float, generator: Generator) -> Tensor:
    fan_in = max(size[-1] if size else 1, 1)
    bound = math.sqrt(6 / ((1 + a * a) * fan_in))
    return torch.empty(size, **DRAWN).uniform_(-bound, bound, generator=generator)


def default_dtype(base: torch.dtype) -> torch.dtype:
    """float32 on a 16-bit or quantised base, else the base's."""
    return base if base in (torch.float32, torch.float64) else torch.float32


def leaf_dtype(spec: LeafSpec, base: torch.dtype) -> torch.dtype:
    """The dtype a leaf is held in."""
    if spec.dtype is not None:
        dtype: torch.dtype = getattr(torch, spec.dtype)
        return dtype
    return torch.int64 if spec.leaf.kind == "integer" else default_dtype(base)


def cut(whole: Tensor, dims: Shape) -> Tensor:
    """A layer's part of a whole leaf: top left. A view."""
    size = _numbers(dims)
    return whole if tuple(whole.shape) == size else whole[tuple(slice(s) for s in size)]


def _numbers(dims: Shape) -> tuple[int, ...]:
    return tuple(int(d) for d in dims)


def all_leaves(equation: Equation) -> list[Leaf]:
    """Declared leaves, then values computed at attach: the order in which they are held and saved."""
    return [s.leaf for s in equation.leaves] + [leaf for leaf, _ in equation.attach]
