"""One adapter at one size, as the laws look at it, and how values are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from adaptc.equation import STAND_IN, GivenSpec
from adaptc.errors import LawError
from adaptc.ir.dims import TOKENS
from adaptc.method import Adapter
from adaptc.nn import linear as paths
from adaptc.nn.calibrate import calibrate
from adaptc.nn.call import fresh_seed
from adaptc.nn.inject import inject
from adaptc.nn.linear import AdaptedLinear
from adaptc.runtime.reference import Evaluator

PLANS = 64
ROOM = 2**24  # entries: a candidate plan with a larger value is not run
EXACT = 1e-9  # relative, in float64: far above rounding, far below a wrong term


@dataclass
class Case:
    """One adapter at one size, with its trained leaves moved away from their initial values."""

    adapter: Adapter
    n: int
    k: int
    m: int = 5
    plans: int = PLANS
    seed: int = 0
    layer: AdaptedLinear = field(init=False)

    def __post_init__(self) -> None:
        self.layer = self.make()

    def base(self, dtype: torch.dtype = torch.float64, bias: bool = True) -> nn.Linear:
        """A plain layer with known weights."""
        torch.manual_seed(self.seed)
        return nn.Linear(self.k, self.n, bias=bias, dtype=dtype).requires_grad_(False)

    def measured(self, base: nn.Module) -> nn.Module:
        """The base layer, with the statistics that the equation asks for."""
        equation = self.adapter.trace(self.n, self.k)
        batches = [self.x(self.k + 3, dtype=next(base.parameters()).dtype)]
        for g in equation.given:
            if g.at == "attach" and g.default is None:
                calibrate(nn.Sequential(base), batches, g.name, loss=lambda y, x: y.square().mean())
        return base

    def make(self, dtype: torch.dtype = torch.float64, moved: bool = True, dropout: float = 0.0) -> AdaptedLinear:
        """The adapted layer."""
        layer = AdaptedLinear(self.measured(self.base(dtype)), self.adapter, dropout=dropout, layer=STAND_IN)
        if moved:
            move(layer, self.seed)
        return layer

    def model(self) -> nn.Sequential:
        """A model of one adapted layer."""
        model = nn.Sequential(self.measured(self.base()))
        inject(model, self.adapter, ["0"])
        move(model, self.seed)
        return model

    def call(self, module: nn.Module, x: Tensor) -> Tensor:
        """module(x), with the same random numbers every time and values for what the equations are given."""
        for layer in module.modules():
            if isinstance(layer, AdaptedLinear):
                layer.given = {g.name: self.sample(g, x) for g in layer.stack().given}
        torch.manual_seed(self.seed + 3)
        y: Tensor = module(x)
        return y

    def sample(self, g: GivenSpec, x: Tensor) -> Tensor:
        """A value for what a call is given: whole numbers are 0, which every index may be."""
        size = [x.shape[:-1].numel() if d == TOKENS else int(d) for d in g.leaf.dims]
        if g.leaf.kind == "integer":
            return torch.zeros(size, dtype=torch.int64)
        if g.default is not None:  # the merged weight has it
            return torch.full(size, g.default, dtype=x.dtype)
        generator = torch.Generator().manual_seed(self.seed + 4)
        return torch.randn(size, generator=generator, dtype=torch.float64).to(x.dtype)

    def tensors(self, layer: AdaptedLinear, x: Tensor) -> list[Tensor]:
        """A program's arguments after x, in a call as `call` makes it."""
        composed = layer.stack(layer.training)
        found = layer.tensors() + [self.sample(g, x) for g in composed.given]
        torch.manual_seed(self.seed + 3)
        return found + ([fresh_seed(x.device)] if composed.seeded else [])

    def x(self, *lead: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Tokens."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(*(lead or (self.m,)), self.k, generator=generator, dtype=torch.float64).to(dtype)

    def __str__(self) -> str:
        return f"{self.adapter} at n = {self.n}, k = {self.k}, m = {self.m}"


def move(layer: nn.Module, seed: int) -> None:
    """Add noise to every trained leaf, so that no law is tested at the identity alone."""
    generator = torch.Generator().manual_seed(seed + 2)
    with torch.no_grad():
        for p in layer.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn(p.shape, generator=generator).to(p.device, p.dtype))


def need(law: str, holds: bool, message: Callable[[], str]) -> None:
    """Raise LawError unless the law holds."""
    if not holds:
        raise LawError(law, message())


def close(law: str, got: Tensor, want: Tensor, what: str, floor: float = 0.0) -> None:
    """Relative agreement in the Frobenius norm; floor: the size below which a value counts as zero."""
    need(
        law,
        got.shape == want.shape,
        lambda: f"{what} has shape {tuple(got.shape)}, wanted {tuple(want.shape)}",
    )
    if not want.numel():
        return
    error = (got - want).detach().to(torch.float64).abs()
    scale = max(float(want.detach().to(torch.float64).norm()), floor, 1e-30)

    def message() -> str:
        at = tuple(int(i) for i in torch.unravel_index(error.nan_to_num(nan=float("inf")).argmax(), error.shape))
        return (
            f"{what} is off by {float(error.norm()) / scale:.3g} relative; at {at} it is {got[at].item():.6g}, "
            f"should be {want[at].item():.6g}"
        )

    need(law, float(error.norm()) <= EXACT * scale, message)


def oracle(case: Case, layer: AdaptedLinear, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """y by the dense definition, and the tensors it was computed from, in the order of the program's arguments."""
    composed = layer.stack(layer.training)
    values = [x, *case.tensors(layer, x)]
    evaluate = Evaluator(dict(zip(composed.arguments, values, strict=True)), torch.float64, rows=x.shape[0])
    return evaluate(composed.output), values


def compare_gradients(
    law: str,
    got: Sequence[Tensor],
    want: Sequence[Tensor],
    wrt: Sequence[Tensor],
    size: Tensor,
    what: str,
) -> None:
    """Gradients agree; one that vanishes is measured against a thousandth of |gy| |y| / |leaf|."""
    for g, w, t in zip(got, want, wrt, strict=True):
        close(
            law,
            g,
            w,
            what.format(tuple(t.shape)),
            1e-3 * float(size / t.detach().norm().clamp(min=1e-30)),
        )


def gradients_of(y: Tensor, wrt: Sequence[Tensor], gy: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(y, wrt, gy, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, wrt, strict=True)]


@contextmanager
def through(route: str) -> Iterator[None]:
    """Calls of layers on plain tensors by one way of `ROUTES`."""
    before = paths.route
    paths.route = route
    try:
        yield
    finally:
        paths.route = before
