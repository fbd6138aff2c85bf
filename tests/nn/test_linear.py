"""One layer: forward and backward of every method against dense definitions, and what autograd demands of it."""

import itertools

import pytest
import torch
from methods_small import (
    METHODS,
    OUTPUT_FORMS,
    WEIGHT_FORMS,
    Dense,
    K,
    N,
    adapted,
    close,
    distance,
    move,
    one_of_each_kind,
    small,
    trained,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

import adaptc as ac
from adaptc.errors import EquationError
from adaptc.method import W_leaf
from adaptc.methods import catalogue

SHAPES = [(7, 13), (13, 7), (16, N), (1, 9), (9, 1), (1, 1)]
FITS = {
    f"{name}-{n}x{k}": (a, n, k)
    for name, method in catalogue().items()
    for n, k in SHAPES
    if (a := small(method, n, k)) is not None
}
LAYOUTS = {
    "vector": lambda: torch.randn(K, dtype=torch.float64),
    "matrix": lambda: torch.randn(5, K, dtype=torch.float64),
    "no tokens": lambda: torch.randn(0, K, dtype=torch.float64),
    "three axes": lambda: torch.randn(2, 3, K, dtype=torch.float64),
    "four axes": lambda: torch.randn(2, 1, 3, K, dtype=torch.float64),
    "no batch": lambda: torch.randn(2, 0, K, dtype=torch.float64),
    "transposed": lambda: torch.randn(K, 5, dtype=torch.float64).T,
    "strided": lambda: torch.randn(4, 6, 2 * K, dtype=torch.float64)[::2, 1::2, ::2],
    "expanded": lambda: torch.randn(1, K, dtype=torch.float64).expand(5, K),
}

every_method = pytest.mark.parametrize("adapter", METHODS.values(), ids=METHODS)


def agree(layer, x, gy=None):
    """y, gx and every gradient of a layer equal those of its dense definition."""
    dense = Dense.of(layer)
    mine = x.detach().requires_grad_(x.requires_grad)
    rows = x.detach().reshape(-1, x.shape[-1]).clone().requires_grad_(x.requires_grad)
    y, want = layer(mine), dense(rows)
    close(y, want.reshape(*x.shape[:-1], want.shape[1]), "y")
    gy = torch.randn_like(want).reshape(y.shape) if gy is None else gy
    names = list(trained(layer))
    ours = [layer.get_parameter(name) for name in names]
    theirs = [dense.tensors[name] for name in names]
    if x.requires_grad:
        names, ours, theirs = ["x", *names], [mine, *ours], [rows, *theirs]
    found = torch.autograd.grad(
        y, ours, gy, materialize_grads=True
    )  # a leaf may have no effect: GLoRA's D without a bias
    expected = torch.autograd.grad(want, theirs, gy.reshape(want.shape), materialize_grads=True)
    for name, leaf, g, e in zip(names, ours, found, expected, strict=True):
        assert g.dtype == leaf.dtype
        terms = (gy.norm() * y.norm() / leaf.norm()).item() if leaf.numel() else 0.0
        close(g, e.reshape(g.shape), f"gradient of {name}", terms)


# --------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(("adapter", "n", "k"), FITS.values(), ids=FITS)
def test_forward_and_backward_at_rectangular_prime_and_one_sized_shapes(adapter, n, k):
    x = torch.randn(5, k, dtype=torch.float64, requires_grad=True)
    agree(adapted(adapter, n, k), x)


@every_method
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_x(adapter, layout):
    agree(adapted(adapter), LAYOUTS[layout]().requires_grad_())


@every_method
def test_strided_gradient_of_y(adapter):
    x = torch.randn(3, 4, K, dtype=torch.float64, requires_grad=True)
    agree(adapted(adapter), x, gy=torch.randn(N, 4, 3, dtype=torch.float64).permute(2, 1, 0))
    agree(adapted(adapter), x, gy=torch.ones((), dtype=torch.float64).expand(3, 4, N))


@every_method
def test_without_a_base_bias(adapter):
    agree(adapted(adapter, bias=False), torch.randn(5, K, dtype=torch.float64, requires_grad=True))


@every_method
def test_base_weight_and_bias_that_are_trained_too(adapter):
    layer = adapted(adapter)
    layer.requires_grad_(True)
    agree(layer, torch.randn(5, K, dtype=torch.float64, requires_grad=True))


@every_method
def test_x_without_a_gradient(adapter):
    agree(adapted(adapter), torch.randn(5, K, dtype=torch.float64))


@every_method
def test_only_x_with_a_gradient(adapter):
    layer = adapted(adapter).requires_grad_(False)
    agree(layer, torch.randn(5, K, dtype=torch.float64, requires_grad=True))


@every_method
def test_without_grad_the_numbers_are_the_same_and_no_graph_is_made(adapter):
    layer, x = adapted(adapter), torch.randn(5, K, dtype=torch.float64, requires_grad=True)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = layer(x)
        assert not y.requires_grad
        close(y, Dense.of(layer)(x), "y")


# --------------------------------------------------------------------------- lower precision


def gradients(layer, x, gy, dense, magnitude):
    """For y, x and every leaf: ours, the dense rival's in x's dtype, float64's, the rounding scale."""
    exact, rival = Dense.of(layer), Dense.of(layer, torch.float32)
    names = ["y", "x", *trained(layer)]
    mine, wide, narrow, size = (t.clone().requires_grad_() for t in (x, x.double(), x, x.double()))
    scale = Dense.of(layer)
    calls = [
        (mine, layer(mine), gy, layer.get_parameter),
        (narrow, dense(rival, narrow), gy, rival.tensors.get),
        (wide, exact(wide), gy.double(), exact.tensors.get),
        (size, magnitude(scale, size), gy.double().abs(), scale.tensors.get),
    ]
    columns = []
    for start, y, g, find in calls:
        leaves = [start, *(find(name) for name in names[2:])]
        columns.append([y, *torch.autograd.grad(y, leaves, g, materialize_grads=True)])
    return [(name, *(c[j].detach().double() for c in columns)) for j, name in enumerate(names)]


def rounds_well(layer, x, dense):
    """|ours - y64| <= 2 |torch - y64| + 2 eps | |x| (|W| + |terms|)^T |, and the same for gradients."""
    gy = torch.randn(len(x), layer.out_features).to(x.dtype)
    eps = torch.finfo(x.dtype).eps
    for name, ours, torchs, exact, size in gradients(layer, x, gy, dense, Dense.magnitudes):
        bound = 2 * (torchs - exact).norm() + 2 * eps * size.norm()
        assert (ours - exact).norm() <= bound, name


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_as_good_as_the_dense_layer(adapter, dtype):
    layer = adapted(adapter, dtype=dtype)
    assert all(p.dtype == torch.float32 for p in trained(layer).values())  # masters
    x = torch.randn(50, K).to(dtype)
    assert layer(x).dtype == dtype
    rounds_well(layer, x, lambda rival, rows: rival(rows, round_to=dtype))


# --------------------------------------------------------------------------- autograd


@every_method
def test_a_second_derivative_raises(adapter):
    layer = adapted(adapter)
    x = torch.randn(5, K, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    (gx,) = torch.autograd.grad(y, x, torch.ones_like(y).requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        gx.square().sum().backward()


def bends_x(adapter):
    """Does the gradient of x depend on a leaf? Where the bias alone is adapted it does not."""
    equation = adapter.trace(N, K)
    return equation.is_output_form or equation.weight is not W_leaf(N, K)


@pytest.mark.parametrize("adapter", [a for a in METHODS.values() if bends_x(a)], ids=str)
def test_a_gradient_penalty_is_never_dropped_in_silence(adapter):
    layer = adapted(adapter)
    x = torch.randn(5, K, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    (gx,) = torch.autograd.grad(y.sum(), x, create_graph=True)  # it depends on the leaves
    with pytest.raises(RuntimeError):
        (y.sum() + gx.square().sum()).backward()


def refuse(*_, **__):
    """In place of what must not be called."""
    raise AssertionError("called")


@every_method
def test_backward_never_calls_autograd(adapter, monkeypatch):
    layer = adapted(adapter)
    x = torch.randn(5, K, dtype=torch.float64, requires_grad=True)
    y, grad = layer(x), torch.autograd.grad
    for owner, name in (
        (torch.autograd, "grad"),
        (torch.autograd, "backward"),
        (torch.Tensor, "backward"),
        (torch, "enable_grad"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    found = grad(y, [x, *trained(layer).values()], torch.ones_like(y))
    assert all(torch.isfinite(g).all() for g in found)


@every_method
def test_a_second_call_plans_nothing_whatever_its_number_of_tokens(adapter, monkeypatch):
    layer = adapted(adapter)
    first = torch.randn(5, K, dtype=torch.float64, requires_grad=True)
    layer(first).sum().backward()
    with torch.no_grad():
        layer(first)
    for name in (
        "adaptc.method._traced",
        "adaptc.plan.search.evaluate",
        "adaptc.runtime.program.emit",
    ):
        monkeypatch.setattr(name, refuse)
    second = torch.randn(2, 9, K, dtype=torch.float64, requires_grad=True)
    layer(second).sum().backward()
    with torch.no_grad():
        layer(second)
    assert second.grad is not None


@every_method
@pytest.mark.parametrize("lead", [(5,), (2, 3)])
def test_y_may_be_written_to_in_place(adapter, lead):
    layer = adapted(adapter)
    x = torch.randn(*lead, K, dtype=torch.float64, requires_grad=True)
    leaves, y = [x, *trained(layer).values()], layer(x)
    want = torch.autograd.grad(y, leaves, (y > 0).double())
    y = layer(x)
    y *= 3
    found = torch.autograd.grad(y.relu_().sum(), leaves)
    for g, w in zip(found, want, strict=True):
        close(g, 3 * w)


@every_method
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(adapter, reentrant):
    layer = adapted(adapter)
    x = torch.randn(5, K, dtype=torch.float64, requires_grad=True)
    leaves, gy = [x, *trained(layer).values()], torch.randn(5, N, dtype=torch.float64)
    want = torch.autograd.grad(layer(x), leaves, gy)
    checkpoint(layer, x, use_reentrant=reentrant).backward(gy)
    for leaf, g in zip(leaves, want, strict=True):
        assert torch.equal(leaf.grad, g)


@every_method
def test_two_runs_give_the_same_bits(adapter):
    layer, x = adapted(adapter), torch.randn(5, K, dtype=torch.float64, requires_grad=True)
    leaves = [x, *trained(layer).values()]
    runs = [(y := layer(x), *torch.autograd.grad(y.square().sum(), leaves)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("adapter", METHODS.values(), ids=METHODS)
def test_autocast_gives_the_dtype_and_numbers_of_autocast(adapter):
    layer = adapted(adapter, dtype=torch.float32)
    x = torch.randn(50, K)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, layer(x.bfloat16()))


# --------------------------------------------------------------------------- at attach, and several adapters


@pytest.mark.parametrize("bias", [True, False])
@every_method
def test_a_fresh_adapter_is_the_identity_unless_the_method_says_otherwise(adapter, bias):
    base = nn.Linear(K, N, bias=bias, dtype=torch.float64)
    x = torch.randn(5, K, dtype=torch.float64)
    want = base(x)
    error = distance(ac.AdaptedLinear(base, adapter)(x).detach(), want.detach())
    assert (error < 1e-7) == adapter.method.identity  # leaves are drawn in float32


ONE_OF_EACH = one_of_each_kind(WEIGHT_FORMS)
PAIRS = [*itertools.permutations(ONE_OF_EACH.values(), 2)]
LAST = [*itertools.product([*ONE_OF_EACH.values(), *OUTPUT_FORMS.values()], OUTPUT_FORMS.values())]


def pair(first, second):
    """A model of one layer with two trained adapters."""
    model = nn.Sequential(nn.Linear(K, N, dtype=torch.float64))
    ac.inject(model, first, ["0"], name="first")
    ac.inject(model, second, ["0"], name="second")
    move(model)
    return model


def test_the_pairs_are_of_six_kinds_at_least():
    assert len(ONE_OF_EACH) >= 6


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda a: a.name)
def test_two_adapters_compose_in_order_and_merge(first, second):
    model = pair(first, second)
    x = torch.randn(5, K, dtype=torch.float64, requires_grad=True)
    agree(model[0], x)
    y = model(x)
    close(model[0].adapted_weight(), Dense.of(model[0]).weights()[0], "W'")
    ac.merge(model)
    close(model(x), y, "merged forward")


@pytest.mark.parametrize(("first", "second"), LAST, ids=lambda a: a.name)
def test_an_output_form_after_another_adapter(first, second):
    agree(pair(first, second)[0], torch.randn(5, K, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("second", ONE_OF_EACH.values(), ids=lambda a: a.name)
@pytest.mark.parametrize("first", OUTPUT_FORMS.values(), ids=lambda a: a.name)
def test_a_weight_form_after_an_output_form_is_an_error(first, second):
    with pytest.raises(EquationError, match=rf"'{second.name}'.*'{first.name}'.*weight forms first"):
        pair(first, second)


@pytest.mark.parametrize("second", [a for a in WEIGHT_FORMS.values() if "layer" not in a.method.defaults], ids=str)
def test_attach_values_of_a_second_adapter_read_the_base_weight(second):
    first = next(a for a in WEIGHT_FORMS.values() if a.method is not second.method)
    model = pair(first, second)
    alone = nn.Linear(K, N, dtype=torch.float64)
    alone.load_state_dict({"weight": model[0].weight, "bias": model[0].bias})
    torch.manual_seed(1)
    layer = ac.AdaptedLinear(alone, second)
    torch.manual_seed(1)
    ac.inject(model, second, ["0"], name="third")
    for name, value in layer.leaves().items():
        assert torch.equal(model[0].leaves("third")[name], value), name
