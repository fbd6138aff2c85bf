"""Every method of the catalogue at a small size, and its value from dense definitions.

`Dense` composes the traced equations by itself: it uses neither the planner, nor generated code, nor the
composition of the runtime.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import adaptc as ac
from adaptc.errors import LeafError, ShapeError
from adaptc.ir.expr import Expr, postorder
from adaptc.method import Adapter, Method, W_leaf, bias_leaf, x_leaf, y_leaf
from adaptc.methods import catalogue
from adaptc.nn.linear import AdaptedLinear
from adaptc.runtime.attach import cut
from adaptc.runtime.reference import Evaluator

CAPS = (4, 3, 2, 1)  # the largest first: rotations of 2 x 2 blocks commute
N, K = 24, 16


def small(method: Method, n: int = N, k: int = K) -> Adapter | None:
    """The method with its whole numbers capped until an n x k layer takes it; None where none does."""
    with torch.random.fork_rng():
        for cap in CAPS:
            hyper = {h: min(v, cap) for h, v in method.defaults.items() if type(v) is int}
            try:
                layer = AdaptedLinear(nn.Linear(k, n), method(**hyper))
            except (ShapeError, LeafError):
                continue
            whole = {s.name: tuple(s.leaf.dims) for s in layer._leaves("default").equation.leaves}
            sizes = {name: tuple(v.shape) for name, v in layer.leaves().items()}
            if all(whole.get(name, size) == size and 0 not in size for name, size in sizes.items()):
                return method(**hyper)
    return None


def needs_data(method: Method) -> bool:
    """Does a method start from statistics of data? tests/test_contract.py and tests/nn/test_calibrate.py have those."""
    sizes = ((N, K), (96, 64))  # the second for methods whose blocks are larger by default
    for n, k in sizes:
        try:
            return any(g.at == "attach" for g in method().trace(n, k).given)
        except ShapeError:
            continue
    return False


METHODS = {name: small(method) for name, method in catalogue().items() if not needs_data(method)}
WEIGHT_FORMS = {name: a for name, a in METHODS.items() if not a.trace(N, K).is_output_form}
OUTPUT_FORMS = {name: a for name, a in METHODS.items() if name not in WEIGHT_FORMS}


def one_of_each_kind(adapters: dict[str, Adapter]) -> dict[str, Adapter]:
    """The first method of every file of the catalogue: unlike each other."""
    return {a.method.module: a for a in reversed(adapters.values())}


@torch.no_grad()
def move(layer: nn.Module, size: float = 0.3) -> None:
    """Away from the initial values."""
    for p in ac.adapter_parameters(layer):
        p.add_(size * torch.randn(p.shape, dtype=torch.float32))


def adapted(
    adapter: Adapter,
    n: int = N,
    k: int = K,
    *,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
) -> AdaptedLinear:
    """A layer with a trained adapter on a frozen base."""
    layer = AdaptedLinear(nn.Linear(k, n, bias=bias, dtype=dtype).requires_grad_(False), adapter)
    move(layer)
    return layer


def trained(layer: AdaptedLinear) -> dict[str, Tensor]:
    """Every tensor of a layer that gets a gradient."""
    return {name: p for name, p in layer.named_parameters() if p.requires_grad}


class Magnitude(Evaluator):
    """What an expression would be with every term and factor positive, operators taken as they are."""

    def __init__(self, values: dict[Expr, Tensor]) -> None:
        super().__init__({}, torch.float64)
        self.known = values

    def compute(self, e: Expr) -> Tensor:
        """Sums and products of magnitudes; for everything else the size of the value."""
        match type(e).__name__:
            case "Add":
                return sum(self.values[t] for t in e.terms)
            case "Scale":
                return abs(float(e.factor)) * self.values[e.x]
            case "MatMul":
                return self.values[e.A] @ self.values[e.B]
            case "Transpose":
                return self.values[e.A].mT
            case "Contract":
                return torch.einsum(e.spec, *(self.values[op] for op in e.operands))
            case _:
                return self.known[e].abs().double()

    def __call__(self, root: Expr) -> Tensor:
        for e in postorder(root):
            if e.kind != "integer" and e not in self.values:
                self.values[e] = self.compute(e)
        return self.values[root]


@dataclass
class Dense:
    """A layer's active adapters on given tensors, in list order, by their definitions.

    tensors: `weight`, `bias` and `adapters.<name>.<leaf>`, as in the state dict.
    """

    layer: AdaptedLinear
    tensors: dict[str, Tensor]
    dtype: torch.dtype = torch.float64

    @classmethod
    def of(cls, layer: AdaptedLinear, dtype: torch.dtype = torch.float64) -> Dense:
        """Copies of a layer's tensors; those that are trained get gradients."""
        named = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        copies = {}
        for name, t in named.items():
            copy = t.detach().clone()
            copies[name] = copy.to(dtype) if t.is_floating_point() else copy
            copies[name].requires_grad_(t.requires_grad)
        return cls(layer, copies, dtype)

    def bias(self) -> Tensor:
        """The base's, or zeros."""
        zero = torch.zeros(self.layer.out_features, dtype=self.dtype)
        return self.tensors.get("bias", zero)

    def _env(self, name: str, weight: Tensor, bias: Tensor) -> dict[Expr, Tensor]:
        equation = self.layer._leaves(name).equation
        found = [s.leaf for s in equation.leaves] + [leaf for leaf, _ in equation.attach]
        env = {e: cut(self.tensors[f"adapters.{name}.{e.name}"], e.dims) for e in found}
        return {**env, W_leaf(*weight.shape): weight, bias_leaf(len(bias)): bias}

    def weights(self) -> tuple[Tensor, Tensor]:
        """W' and bias'."""
        weight, bias = self.tensors["weight"], self.bias()
        for name in self.layer.active:
            equation = self.layer._leaves(name).equation
            if not equation.is_output_form:
                ev = Evaluator(self._env(name, weight, bias), self.dtype)
                weight = ev(equation.weight)
                bias = bias if equation.bias is None else ev(equation.bias)
        return weight, bias

    def magnitudes(self, x: Tensor) -> Tensor:
        """|x| (|W| + |terms|)^T + |bias|, or the same for the output form of one adapter."""
        (name,) = self.layer.active
        equation = self.layer._leaves(name).equation
        env = self._env(name, self.tensors["weight"], self.bias())
        parts = [e for e in (equation.weight, equation.bias, equation.output) if e is not None]
        base = x.abs() @ self.tensors["weight"].abs().T + self.bias().abs()
        env |= {x_leaf(x.shape[1]): x, y_leaf(len(self.bias())): base}
        ev = Evaluator(env, self.dtype, rows=len(x))
        for part in parts:
            ev(part)
        size = Magnitude(ev.values)
        if equation.is_output_form:
            return size(equation.output)
        bias = self.bias().abs() if equation.bias is None else size(equation.bias)
        return x.abs() @ size(equation.weight).T + bias

    def __call__(self, x: Tensor, round_to: torch.dtype | None = None) -> Tensor:
        """y (m, n) for x (m, k). round_to: W' and bias' are rounded to it, as a layer of that dtype holds them."""
        weight, bias = self.weights()
        if round_to is not None:
            weight, bias = weight.to(round_to), bias.to(round_to)
        y = nn.functional.linear(x, weight, bias)
        for name in self.layer.active:
            equation = self.layer._leaves(name).equation
            if equation.is_output_form:
                env = self._env(name, self.tensors["weight"], self.bias())
                env = {e: t.to(y.dtype) if t.is_floating_point() else t for e, t in env.items()}
                env |= {x_leaf(x.shape[1]): x, y_leaf(y.shape[1]): y}
                y = Evaluator(env, y.dtype, rows=len(x))(equation.output)
        return y


def distance(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|, Frobenius; the plain norm where b is zero."""
    error, size = (a.detach().double() - b.detach().double()).norm(), b.detach().double().norm()
    return (error / size if size > 0 else error).item()


def close(a: Tensor, b: Tensor, what: str = "", terms: float = 0.0) -> None:
    """Equal but for rounding in float64. terms: the size of what b is the difference of, where it may vanish."""
    assert a.shape == b.shape, f"{what}: {tuple(a.shape)} and {tuple(b.shape)}"
    error, size = (a.detach() - b.detach()).norm().item(), b.detach().norm().item()
    assert error <= 1e-10 * size + 1e-13 * terms, f"{what}: {error:.1e} of {size:.1e}"
