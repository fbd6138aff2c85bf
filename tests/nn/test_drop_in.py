"""`ac.Linear` in the place of `nn.Linear`."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from methods_small import METHODS, K, N, close, move
from torch import nn
from torch.nn import functional as F

import adaptc as ac
from adaptc.errors import InjectError, ShapeError
from adaptc.methods import dora, hra, ia3, lora, oft, parallel_adapter, pissa, vera

SOME = {a.name: a for a in (lora(r=3), hra(r=4), dora(r=3), ia3(), pissa(r=3), parallel_adapter(d=5), vera(r=5))}
some = pytest.mark.parametrize("adapter", SOME.values(), ids=SOME)


def trained(adapter, bias=True, **options):
    """A layer away from its start."""
    layer = ac.Linear(K, N, bias, adapter=adapter, **{"dtype": torch.float64, **options})
    move(layer)
    return layer


def tokens(*lead):
    return torch.randn(*(lead or (5,)), K, dtype=torch.float64)


@pytest.mark.parametrize("adapter", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_an_nn_linear_with_the_same_attributes(adapter, bias):
    layer, plain = ac.Linear(K, N, bias, adapter=adapter), nn.Linear(K, N, bias)
    assert isinstance(layer, nn.Linear)
    assert isinstance(layer, ac.AdaptedLinear)
    assert (layer.in_features, layer.out_features) == (K, N)
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.weight.shape == plain.weight.shape
    assert (layer.bias is None) == (plain.bias is None)
    public = {n for n in dir(plain) if not n.startswith("_")}
    assert public <= set(dir(layer))
    assert [n for n in layer.state_dict() if not n.startswith("adapters.")] == list(plain.state_dict())
    assert all(n.startswith("adapters.default.") for n in list(layer.state_dict())[1 + bias :])
    assert repr(layer).startswith("Linear(")
    assert f"in_features={K}, out_features={N}, bias={bias}" in repr(layer)
    assert adapter.name in repr(layer)


def test_the_signature_is_nn_linears_and_the_adapter():
    ours, plain = (inspect.signature(c).parameters for c in (ac.Linear, nn.Linear))
    assert {n: p.default for n, p in plain.items()}.items() <= {n: p.default for n, p in ours.items()}.items()
    assert ours.keys() - plain.keys() == {"adapter"}
    with pytest.raises(TypeError, match="adapter"):
        ac.Linear(K, N)
    with pytest.raises(TypeError, match="not an adapter"):
        ac.Linear(K, N, adapter="lora")
    with pytest.raises(ShapeError, match="does not divide"):
        ac.Linear(K, N, adapter=oft(b=5))


def test_the_weight_is_drawn_as_nn_linear_draws_it():
    torch.manual_seed(3)
    plain = nn.Linear(K, N)
    torch.manual_seed(3)
    layer = ac.Linear(K, N, adapter=lora(r=3))
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.bias, plain.bias)
    assert not layer.weight.requires_grad
    assert not layer.bias.requires_grad
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["adapters.default.A", "adapters.default.B"]


@some
@pytest.mark.parametrize("bias", [True, False])
def test_a_plain_state_dict_loads_under_strict(adapter, bias):
    plain, layer = nn.Linear(K, N, bias, dtype=torch.float64), ac.Linear(K, N, bias, adapter=adapter).double()
    missing, unexpected = layer.load_state_dict(plain.state_dict(), strict=True)
    assert not missing
    assert not unexpected
    x = tokens()
    close(layer(x), plain(x))
    model, whole = (nn.Sequential(m, nn.ReLU()) for m in (layer, plain))
    model.load_state_dict(whole.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match="weight"):
        layer.load_state_dict({"bias": torch.zeros(N)} if bias else {}, strict=True)


@some
def test_its_own_state_dict_comes_back(adapter):
    layer, x = trained(adapter), tokens()
    other = ac.Linear(K, N, adapter=adapter, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    again = ac.Linear(K, N, adapter=adapter, dtype=torch.float64)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(again(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cpu", "meta", None])
def test_device_and_dtype(dtype, device):
    layer = ac.Linear(K, N, adapter=lora(r=3), device=device, dtype=dtype)
    assert layer.weight.dtype == dtype
    assert {p.device.type for p in layer.parameters()} == {device or "cpu"}
    assert layer.leaves()["A"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if device != "meta":
        assert layer(torch.randn(3, K, dtype=dtype)).dtype == dtype


def test_meta_then_empty_then_reset_parameters():
    layer = ac.Linear(K, N, adapter=pissa(r=3), device="meta", dtype=torch.float64).to_empty(device="cpu")
    layer.reset_parameters()
    x = tokens()
    close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert layer.weight.abs().max() <= K**-0.5
    U, S, Vt = torch.linalg.svd(layer.weight)
    v = layer.leaves()
    close(16 / 3 * v["B"] @ v["A"], U[:, :3] @ torch.diag(S[:3]) @ Vt[:3])


@some
def test_reset_parameters_draws_all_again(adapter):
    layer, x = trained(adapter), tokens()
    torch.manual_seed(3)
    plain = nn.Linear(K, N, dtype=torch.float64)
    torch.manual_seed(3)
    layer.reset_parameters()
    assert torch.equal(layer.weight, plain.weight)
    close(layer(x), plain(x))


@some
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_are_equal_and_apart(adapter, copied):
    layer, x = trained(adapter), tokens()
    other = copied(layer)
    assert type(other) is ac.Linear
    want = layer(x)
    assert torch.equal(other(x), want)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    assert torch.equal(layer(x), want)
    assert not torch.equal(other(x), want)


@some
def test_an_optimiser_trains_the_leaves_alone(adapter):
    layer, x = ac.Linear(K, N, adapter=adapter, dtype=torch.float64), tokens()
    before = {n: t.clone() for n, t in layer.state_dict().items()}
    optimiser = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = (layer(x) - 1).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(layer.weight, before["weight"])
    assert torch.equal(layer.bias, before["bias"])


@pytest.mark.parametrize("adapter", [lora(r=3), hra(r=4), ia3()], ids=["lora", "hra", "ia3"])
@pytest.mark.parametrize("bias", [True, False])
def test_merge_unmerge_and_unload(adapter, bias):
    layer, x = trained(adapter, bias), tokens()
    want, weight = layer(x), layer.weight.clone()
    layer.merge()
    close(layer(x), want)
    close(F.linear(x, layer.weight, layer.bias), want)
    plain = ac.unload(copy.deepcopy(layer))
    assert type(plain) is nn.Linear
    close(plain(x), want)
    layer.unmerge()
    assert torch.equal(layer.weight, weight)
    assert torch.equal(ac.unload(layer)(x), F.linear(x, weight, layer.bias))


def test_in_a_model_another_adapter_goes_on_top():
    torch.manual_seed(0)
    model = nn.Sequential(ac.Linear(K, N, adapter=lora(r=3)), nn.ReLU(), nn.Linear(N, K)).double()
    first, x = model[0], tokens()
    move(model)
    one = first.adapted_weight()
    with pytest.raises(InjectError, match="default"):
        ac.inject(model, lora(r=3), "all-linear")
    ac.inject(model, hra(r=4), "all-linear", name="second")
    assert model[0] is first
    assert first.active == ("default", "second")
    assert type(model[2]) is ac.AdaptedLinear
    close(first.adapted_weight(), one)
    move(model)
    y = model(x)
    ac.merge(model)
    close(model(x), y)
    plain = ac.unload(model)
    assert [type(m) for m in plain] == [nn.Linear, nn.ReLU, nn.Linear]
    close(plain(x), y)


def test_a_file_is_read_by_a_drop_in_layer_and_by_a_plain_one(tmp_path):
    model, x = nn.Sequential(ac.Linear(K, N, adapter=dora(r=3))).double(), tokens()
    move(model)
    ac.save(model, tmp_path)
    for other in (nn.Linear(K, N), ac.Linear(K, N, adapter=dora(r=3))):
        loaded = nn.Sequential(other).double()
        loaded[0].load_state_dict({n: model.state_dict()[f"0.{n}"] for n in ("weight", "bias")})
        close(ac.load(loaded, tmp_path)(x), model(x))


@pytest.mark.parametrize("adapter", [lora(r=3), dora(r=3), parallel_adapter(d=5)], ids=["lora", "dora", "parallel"])
def test_compiled(adapter):
    layer, x = trained(adapter), tokens(2, 3).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    found = [[y, *torch.autograd.grad(y.square().sum(), wanted)] for y in (compiled(x), layer(x))]
    for a, b in zip(*found, strict=True):
        close(a, b)


def test_tokens_of_any_shape():
    layer = trained(lora(r=3))
    for lead in ((), (0,), (1,), (2, 3), (2, 1, 3)):
        assert layer(torch.randn(*lead, K, dtype=torch.float64)).shape == (*lead, N)


def test_the_argument_has_nn_linears_name():
    layer, x = trained(lora(r=3)), tokens()
    assert torch.equal(layer(input=x), layer(x))


@pytest.mark.parametrize("bias", [True, False])
def test_a_bias_that_goes_or_comes(bias):
    layer, x = trained(lora(r=3), bias), tokens()
    layer(x)
    layer.bias = None if bias else nn.Parameter(torch.ones(N, dtype=torch.float64))
    close(layer(x), F.linear(x, layer.adapted_weight(), layer.bias))


def test_a_weight_that_is_tied_or_trained():
    layer, x = trained(lora(r=3)), tokens()
    embed = nn.Embedding(N, K, dtype=torch.float64)
    layer.weight = embed.weight
    v = layer.leaves()
    close(layer(x), F.linear(x, embed.weight + 16 / 3 * v["B"] @ v["A"], layer.bias))
    layer(x).square().sum().backward()
    assert embed.weight.grad is not None
