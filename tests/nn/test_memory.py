"""Who owns which memory: outputs, gradients and shared leaves."""

from __future__ import annotations

import copy

import pytest
import torch
from methods_small import METHODS, K, N, adapted, move
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import adaptc as ac
from adaptc.methods import ia3, lora, oft, pissa, road, tied_lora, vera

every_method = pytest.mark.parametrize("adapter", METHODS.values(), ids=METHODS)


@every_method
@pytest.mark.parametrize("rows", [1, 5])
def test_the_output_may_be_viewed_and_written_to(adapter, rows):
    layer, x = adapted(adapter), torch.randn(rows, K, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    want = y.detach().clone()
    assert y.is_contiguous()
    assert y.view(-1).shape == (rows * N,)
    y.mul_(2).relu_()
    y.sum().backward()
    assert torch.equal(y.detach(), (2 * want).relu())
    with torch.no_grad():
        assert layer(x).view(-1).shape == (rows * N,)


@every_method
def test_no_two_gradients_lie_in_one_place(adapter):
    layer, x = adapted(adapter), torch.randn(5, K, dtype=torch.float64, requires_grad=True)
    gy = torch.randn(5, N, dtype=torch.float64)
    layer(x).backward(gy)
    held = [gy, *(t for p in (x, *layer.parameters()) for t in (p, p.grad) if t is not None)]
    places = [t.untyped_storage().data_ptr() for t in held if t.numel()]
    assert len(set(places)) == len(places)


def test_views_of_one_gradient_are_apart():
    @ac.adapter
    def two_names(W):
        n, k = W.shape
        return W + ac.param("A", (n, k), "zeros") + ac.reshape(ac.param("b", (n * k,), "zeros"), (n, k))

    layer = ac.AdaptedLinear(nn.Linear(4, 3).requires_grad_(False), two_names())
    layer(torch.randn(5, 4)).sum().backward()
    A, b = (layer.leaves()[name].grad for name in "Ab")
    before = b.clone()
    A.zero_()
    assert torch.equal(b, before)


SHARING = {"trained": tied_lora(r=3), "frozen": vera(r=3)}


@pytest.mark.parametrize("adapter", SHARING.values(), ids=SHARING)
def test_a_shared_leaf_that_was_replaced_stays_replaced(adapter):
    model = ac.inject(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), adapter, "all-linear")
    new = {k: torch.randn_like(v) if k.endswith(".A") else v.clone() for k, v in model.state_dict().items()}
    new["1.adapters.default.A"] = new["0.adapters.default.A"]
    model.load_state_dict(new, assign=True)
    assert model[0].leaves()["A"] is model[1].leaves()["A"]
    model.to(torch.float32)
    assert all(torch.equal(v, new[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("adapter", SHARING.values(), ids=SHARING)
def test_a_shared_leaf_stays_one_when_the_model_moves(adapter):
    model = ac.inject(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6)), adapter, "all-linear")
    for moved in (model, copy.deepcopy(model)):
        for dtype in (torch.float64, torch.float32):
            moved.to(dtype)
            assert moved[0].leaves()["A"] is moved[1].leaves()["A"]
            assert moved[0].leaves()["A"].dtype == dtype


NAMES = ("adapter", "equation", "group", "derived", "waiting", "ahead", "values", "take", "T")


@pytest.mark.parametrize("name", NAMES)
def test_a_leaf_may_have_any_name_also_when_tensors_are_assigned(name):
    @ac.adapter
    def named(W):
        return W + ac.diag(ac.param(name, (W.shape[0],), "zeros")) @ W

    model = ac.inject(nn.Sequential(nn.Linear(4, 3)), named(), ["0"])
    move(model)
    other = ac.inject(nn.Sequential(nn.Linear(4, 3)), named(), ["0"])
    other.load_state_dict(model.state_dict(), assign=True)
    x = torch.randn(2, 4)
    assert torch.equal(other.eval().train()(x), model(x))
    assert torch.equal(copy.deepcopy(other)(x), model(x))


@pytest.mark.parametrize("adapter", [ia3(), road(g=2)], ids=str)
def test_a_copy_of_a_merged_layer_that_got_a_bias(adapter, tmp_path):
    @ac.adapter
    def shifted(W, bias):
        return W, bias + ac.param("c", (W.shape[0],), "zeros")

    model = ac.inject(nn.Sequential(nn.Linear(4, 6, bias=False)), adapter, ["0"])
    ac.inject(model, shifted(), ["0"], name="shift")
    move(model)
    x = torch.randn(2, 4)
    y = model(x)
    ac.merge(model)
    ac.save(model, tmp_path)
    plain = nn.Sequential(nn.Linear(4, 6, bias=False))
    plain[0].weight = nn.Parameter(model[0].originals.weight.clone())
    assert torch.allclose(ac.load(plain, tmp_path)(x), y, atol=1e-6)
    twin = copy.deepcopy(model)
    ac.refresh(model)
    for one in (model, twin):
        assert torch.allclose(one(x), y, atol=1e-6)
        assert torch.allclose(x @ one[0].adapted_weight().T + one[0].adapted_bias(), y, atol=1e-5)
        ac.unmerge(one)
        assert one[0].bias is None
        assert torch.allclose(one(x), y, atol=1e-6)


def test_base_weights_of_a_model_with_a_part_named_adapters():
    model = nn.ModuleDict({"adapters": nn.Sequential(nn.Linear(8, 8))})
    ac.inject(model, pissa(r=2), "all-linear")
    new = {"adapters.0.weight": torch.randn(8, 8), "adapters.0.bias": torch.randn(8)}
    model.load_state_dict(new)
    layer, x = model["adapters"][0], torch.randn(3, 8)
    assert torch.allclose(
        layer(x), nn.functional.linear(x, new["adapters.0.weight"], new["adapters.0.bias"]), atol=1e-5
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("adapter", [lora(r=2), oft(b=16)], ids=str)
def test_a_trace_sees_torch_operations_alone(adapter):
    layer = ac.AdaptedLinear(nn.Linear(32, 32).requires_grad_(False), adapter)
    move(layer)
    a, b = torch.randn(4, 32), torch.randn(4, 32)
    with torch.no_grad():
        layer(a)  # with what the machine has
        traced = torch.jit.trace(layer, (a,), check_trace=False)
        assert torch.allclose(traced(b), layer(b), atol=1e-6)
        graph = make_fx(lambda x: layer(x))(a)
        assert torch.allclose(graph(b), layer(b), atol=1e-6)
