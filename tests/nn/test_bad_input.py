"""What a layer says about input that it cannot take: both values, in the user's terms."""

import pytest
import torch
from methods_small import METHODS, OUTPUT_FORMS, WEIGHT_FORMS, K, N, adapted
from torch import nn

import adaptc as ac
from adaptc.errors import AdaptcError, HyperparameterError, InjectError, ShapeError
from adaptc.methods import catalogue, hra, lora

FORMS = [next(iter(WEIGHT_FORMS.values())), next(iter(OUTPUT_FORMS.values()))]
one_of_each_form = pytest.mark.parametrize("adapter", FORMS, ids=lambda a: a.name)
every_method = pytest.mark.parametrize("adapter", METHODS.values(), ids=METHODS)


@every_method
@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("width", [1, K - 1, K + 1, 2 * K])
def test_rows_of_the_wrong_width(adapter, lead, width):
    layer = adapted(adapter)
    for x in (torch.randn(*lead, width).double(), torch.randn(*lead, width).double().requires_grad_()):
        with pytest.raises(ShapeError, match=rf"\b{width}\b.*\b{K}\b"):
            layer(x)


@one_of_each_form
def test_a_scalar_is_no_row(adapter):
    with pytest.raises(ShapeError, match=rf"\(\).*{K}|scalar"):
        adapted(adapter)(torch.tensor(1.0).double())


KINDS = [torch.int64, torch.int8, torch.bool, torch.complex64]


@one_of_each_form
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_x_that_is_not_floating_point(adapter, dtype):
    with pytest.raises((TypeError, AdaptcError), match=str(dtype).removeprefix("torch.")):
        adapted(adapter)(torch.ones(5, K).to(dtype))


@pytest.mark.parametrize("x", [[[1.0] * K], None, 3, "x"])
def test_x_that_is_no_tensor(x):
    with pytest.raises(TypeError, match=type(x).__name__):
        adapted(lora(r=2))(x)


@every_method
def test_x_of_another_floating_dtype_gives_its_own(adapter):
    """float32 x on a float64 layer: y has the dtype of x, gradients those of their tensors."""
    layer = adapted(adapter)
    x = torch.randn(5, K, requires_grad=True)
    y = layer(x)
    assert y.dtype == torch.float32
    y.sum().backward()
    assert x.grad.dtype == torch.float32
    assert all(p.grad.dtype == torch.float64 for p in ac.adapter_parameters(nn.Sequential(layer)))
    exact = layer(x.detach().double())
    assert torch.allclose(y.double(), exact, rtol=1e-4, atol=1e-4)


@every_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_spoils_no_other_row(adapter, bad):
    layer = adapted(adapter)
    x = torch.randn(5, K, dtype=torch.float64)
    want = layer(x)
    x[2, 3] = bad
    y = layer(x)
    rest = [0, 1, 3, 4]
    assert torch.allclose(y[rest], want[rest], rtol=1e-12, atol=1e-12)
    assert not torch.isfinite(y[2]).all()


# --------------------------------------------------------------------------- adapters


def function(W):
    """Not declared as an adapter."""
    return W


@pytest.mark.parametrize("adapter", ["lora", None, function, nn.Linear(2, 2), {"r": 8}, lora(r=2).trace(4, 4)])
def test_what_is_no_adapter(adapter):
    for call in (
        lambda: ac.inject(nn.Sequential(nn.Linear(4, 4)), adapter, "all-linear"),
        lambda: ac.AdaptedLinear(nn.Linear(4, 4), adapter),
    ):
        with pytest.raises(TypeError, match=r"not an adapter: .*@adaptc\.adapter"):
            call()


def test_a_method_stands_for_its_defaults():
    layer = ac.AdaptedLinear(nn.Linear(K, N), lora)
    assert tuple(layer.leaves()["A"].shape) == (lora.defaults["r"], K)


@pytest.mark.parametrize("name", catalogue())
def test_a_misspelt_hyper_parameter_of_every_method(name):
    method = catalogue()[name]
    for known in method.defaults:
        with pytest.raises(HyperparameterError, match=rf"'{name}'.*'{known}_'.*did you mean '{known}'"):
            method(**{f"{known}_": 1})
    with pytest.raises(HyperparameterError, match=rf"'{name}'.*'entirely_unlike'"):
        method(entirely_unlike=1)


BAD_SIZES = [0.5, "four", (2, 3), None, -1]


@pytest.mark.parametrize("size", BAD_SIZES, ids=str)
def test_a_rank_that_is_no_size(size):
    with pytest.raises(AdaptcError, match=r"size.*low_rank\.py:\d+"):
        ac.AdaptedLinear(nn.Linear(K, N), lora(r=size))


def test_a_rank_of_zero_is_refused():
    with pytest.raises((AdaptcError, ZeroDivisionError)):
        ac.AdaptedLinear(nn.Linear(K, N), lora(r=0))


def test_an_odd_number_of_paired_reflections():
    with pytest.raises(AdaptcError, match="'U'.*even.*3"):
        ac.AdaptedLinear(nn.Linear(K, N), hra(r=3))


# --------------------------------------------------------------------------- bases


class Whole(nn.Module):
    """A layer of whole numbers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)


BASES = [
    nn.Conv1d(4, 4, 1),
    nn.Embedding(4, 4),
    nn.ReLU(),
    nn.Sequential(nn.Linear(4, 4)),
    nn.Bilinear(4, 4, 4),
    Whole(),
    nn.LazyLinear(4),
]


@pytest.mark.parametrize("base", BASES, ids=lambda b: type(b).__name__)
def test_a_base_that_is_no_linear_layer(base):
    with pytest.raises(InjectError, match="Linear|floating-point"):
        ac.AdaptedLinear(base, lora(r=2))


@pytest.mark.parametrize("base", ["linear", None, torch.ones(4, 4)])
def test_a_base_that_is_no_module(base):
    with pytest.raises((InjectError, TypeError), match=type(base).__name__):
        ac.AdaptedLinear(base, lora(r=2))


def test_an_adapted_layer_is_not_wrapped_again():
    layer = ac.AdaptedLinear(nn.Linear(4, 4), lora(r=2))
    with pytest.raises(InjectError, match="AdaptedLinear"):
        ac.AdaptedLinear(layer, lora(r=2))


def test_an_unknown_adapter_name():
    layer = ac.AdaptedLinear(nn.Linear(4, 4), lora(r=2), name="mine")
    with pytest.raises(KeyError, match="'other'.*mine"):
        layer.leaves("other")


@pytest.mark.parametrize("p", [-0.1, 1.0, 2])
def test_dropout_is_a_probability_below_one(p):
    for call in (
        lambda: ac.inject(nn.Sequential(nn.Linear(4, 4)), lora(r=2), "all-linear", dropout=p),
        lambda: ac.AdaptedLinear(nn.Linear(4, 4), lora(r=2), dropout=p),
    ):
        with pytest.raises(AdaptcError, match=str(p)):
            call()


# --------------------------------------------------------------------------- names of leaves


AWKWARD = [
    *("weight", "adapter", "equation", "forward", "train", "values", "lambda", "lambda_leaf", "class"),
    *("torch", "tables", "rows", "t4", "kept0", "x_float32", "W_bfloat16", "bias_", "self", "A_of_1"),
]


@ac.adapter
def awkward(W):
    """A leaf of every awkward name."""
    n = W.shape[0]
    total = sum(ac.param(name, (n,), float(i + 1)) for i, name in enumerate(AWKWARD))
    return ac.diag(total) @ W


@ac.adapter
def plain_names(W):
    """Another adapter whose leaf would be renamed to one of these."""
    return ac.diag(ac.param("A", (W.shape[0],), 2.0)) @ W


def test_leaves_of_awkward_names(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3, bias=False).double())
    weight = model[0].weight.detach().clone()
    ac.inject(model, awkward(), ["0"])
    assert sorted(model[0].leaves()) == sorted(AWKWARD)
    x = torch.randn(2, 4).double()
    total = sum(range(1, len(AWKWARD) + 1))
    assert torch.allclose(model(x), x @ (total * weight).T)
    model(x).sum().backward()
    assert all(p.grad is not None for p in ac.adapter_parameters(model))
    ac.save(model, tmp_path)
    other = nn.Sequential(nn.Linear(4, 3, bias=False).double())
    other.load_state_dict({"0.weight": weight})
    assert torch.equal(ac.load(other, tmp_path)(x), model(x))


def test_leaves_of_two_adapters_are_never_mistaken_for_each_other():
    model = nn.Sequential(nn.Linear(4, 3, bias=False).double())
    weight = model[0].weight.detach().clone()
    ac.inject(model, awkward(), ["0"], name="first")
    ac.inject(model, plain_names(), ["0"], name="second")
    x = torch.randn(2, 4).double()
    total = 2 * sum(range(1, len(AWKWARD) + 1))
    assert torch.allclose(model(x), x @ (total * weight).T)
