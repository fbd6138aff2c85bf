"""Calls through the registered operators: compiled, exported, transformed, checkpointed, differentiated twice."""

from __future__ import annotations

import pytest
import torch
from torch import library, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import adaptc as ac
from adaptc.case import Case, move, through
from adaptc.errors import UnsupportedError
from adaptc.methods import boft, catalogue, dora, fourierft, hra, lokr, lora, lora_mixture
from adaptc.runtime import ops
from adaptc.verify import accepted

SIX = {
    "lora": lora(r=2),
    "dora": dora(r=2),
    "hra": hra(r=2),
    "boft": boft(b=4),
    "fourierft": fourierft(m=30),
    "lokr": lokr(r=2),
}
MORE = {**SIX, "lora_mixture": lora_mixture(r=2)}
N, K = 24, 16
six = pytest.mark.parametrize("name", SIX)
more = pytest.mark.parametrize("name", MORE)


def layer(adapter, dtype=torch.float64, **options):
    """A layer away from its start."""
    torch.manual_seed(0)
    made = ac.AdaptedLinear(nn.Linear(K, N, dtype=dtype).requires_grad_(False), adapter, **options)
    move(made, 0)
    return made


def deep(adapter, **options):
    """A small model away from its start."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(K, N), nn.Tanh(), nn.Linear(N, K))
    ac.inject(model, adapter, "all-linear", **options)
    move(model, 0)
    return model


def step(f, model, x):
    """Output and gradients of one training step."""
    model.zero_grad()
    x = x.detach().requires_grad_()
    y = f(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in ac.adapter_parameters(model))]


def agree(got, want):
    """Two steps, in float32."""
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max() + 1))


@more
@pytest.mark.parametrize("x_wants", [True, False])
def test_opcheck(name, x_wants):
    one = layer(MORE[name])
    x = torch.randn(5, K, dtype=torch.float64, requires_grad=x_wants)
    tensors = [t.detach().clone().requires_grad_(t.requires_grad) for t in one.tensors()]
    which = ops.call_name(one._modes[True].name, [t.requires_grad for t in (x, *tensors)])
    library.opcheck(torch.ops.adaptc.forward, (x, tensors, which))


@six
def test_compiled_in_one_graph_for_every_number_of_tokens(name):
    model, graphs = deep(SIX[name]), []

    def inductor(module, inputs):
        from torch._inductor.compile_fx import compile_fx

        graphs.append(module)
        return compile_fx(module, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=inductor)
    for m in (10, 100, 1000):
        x = torch.randn(m, K)
        agree(step(compiled, model, x), step(model, model, x))
    assert len(graphs) == 1, "traced again for another number of tokens"


def test_compiled_with_dropout_and_without_gradients():
    model = deep(lora(r=2), dropout=0.5)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(7, K)
    torch.manual_seed(3)
    first = step(compiled, model, x)
    torch.manual_seed(3)
    agree(first, step(model, model, x))
    model.eval()
    with torch.no_grad():
        assert torch.allclose(compiled(x), model(x), atol=1e-6)


def test_compiled_under_autocast():
    model = deep(lora(r=2))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(7, K)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, want = compiled(x), model(x)
    assert y.dtype == want.dtype == torch.bfloat16
    assert torch.equal(y, want)


@more
def test_exported_with_any_number_of_tokens(name):
    one = layer(MORE[name]).eval()
    tokens = torch.export.Dim("m", min=2, max=4096)
    x = torch.randn(7, K, dtype=torch.float64)
    program = torch.export.export(one, (x,), dynamic_shapes={"input": {0: tokens}})
    for m in (2, 33):
        x = torch.randn(m, K, dtype=torch.float64)
        assert torch.allclose(program.module()(x), one(x), rtol=1e-12)
    assert all(not isinstance(t, torch._subclasses.FakeTensor) for t in one.tensors())


@more
def test_vmap_and_grad_of_functions(name):
    one = layer(MORE[name])
    x = torch.randn(3, 5, K, dtype=torch.float64)
    assert torch.allclose(torch.func.vmap(one)(x), one(x))
    leaves = {n: p.detach() for n, p in one.named_parameters() if ".adapters." in f".{n}"}

    def loss(leaves, x):
        return torch.func.functional_call(one, leaves, (x,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(leaves, x)
    for i in range(3):
        step(one, one, x[i])
        for n, g in each.items():
            assert torch.allclose(g[i], one.get_parameter(n).grad)
    pair = {n: torch.stack([p, 2 * p]) for n, p in leaves.items()}
    both = torch.func.vmap(lambda leaves, x: torch.func.functional_call(one, leaves, (x,)), in_dims=(0, None))(
        pair, x[0]
    )
    assert torch.allclose(both[0], one(x[0]))


def twice(one, x):
    """The second derivative by autograd."""
    (g,) = torch.autograd.grad(one(x).square().sum(), x, create_graph=True)
    g.sum().backward()


def twice_by_functions(one, x):
    """The second derivative by torch.func."""
    first = torch.func.grad(lambda x: one(x).square().sum())
    torch.func.grad(lambda x: first(x).sum())(x.detach())


@more
@pytest.mark.parametrize(("way", "second"), [("plain", twice), ("op", twice), ("plain", twice_by_functions)])
def test_a_second_derivative_raises(name, way, second):
    one, x = layer(MORE[name]), torch.randn(5, K, dtype=torch.float64, requires_grad=True)
    with through(way), pytest.raises(UnsupportedError, match="differentiated twice"):
        second(one, x)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("way", ["plain", "op"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed(reentrant, way, dropout):
    model = deep(lora(r=2), dropout=dropout)
    x = torch.randn(6, K)
    with through(way):
        torch.manual_seed(1)
        want = step(model, model, x)
        torch.manual_seed(1)
        got = step(lambda x: checkpoint(model, x, use_reentrant=reentrant), model, x)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


class NoWaiting(TorchDispatchMode):
    """Fails at whatever would wait for a device, or depend on values."""

    WAITS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "unique", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._schema.name.removeprefix("aten::") not in self.WAITS, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", catalogue())
def test_no_step_waits_for_the_device(name):
    adapter = catalogue()[name]()
    case = Case(adapter, *accepted(adapter)[0])
    one, x = case.make(torch.float32, dropout=0.0), case.x(dtype=torch.float32).requires_grad_()
    case.call(one, x)
    for training in (True, False):
        one.train(training)
        with NoWaiting():
            case.call(one, x).sum().backward()
    assert x.grad is not None


def test_the_same_mask_by_every_way(monkeypatch):
    one, x = layer(lora(r=2), torch.float32, dropout=0.4), torch.randn(6, K)
    results = []
    for way in ("plain", "op"):
        with through(way):
            torch.manual_seed(5)
            results.append(one(x))
    from adaptc import env
    from adaptc.nn import linear

    monkeypatch.setattr(linear, "options", lambda: env.Options(0, "reference", False))
    torch.manual_seed(5)
    results.append(one(x))
    assert torch.equal(results[0], results[1])
    assert torch.allclose(results[0], results[2], atol=1e-6)
