"""Dropout of a layer: y = x W^T + b' + D(x) (W' - W)^T; a method of the output form sees D(x) in place of x."""

import pytest
import torch
from methods_small import METHODS, K, N, close, move
from test_kept import saved
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import adaptc as ac
from adaptc.errors import InjectError
from adaptc.ir.random import STREAMS
from adaptc.methods import hra, ia3, lora, lora_mixture, oft, parallel_adapter, road
from adaptc.nn.call import fresh_seed
from adaptc.runtime.random import bernoulli

P = 0.4
WEIGHT = {"lora": lora(r=3), "hra": hra(r=4), "oft": oft(b=4), "ia3": ia3(), "road": road(g=4)}
OUTPUT = {"lora_mixture": lora_mixture(r=3), "parallel_adapter": parallel_adapter(d=5)}
BOTH = {**WEIGHT, **OUTPUT}
weight_forms = pytest.mark.parametrize("adapter", WEIGHT.values(), ids=WEIGHT)
output_forms = pytest.mark.parametrize("adapter", OUTPUT.values(), ids=OUTPUT)
every_form = pytest.mark.parametrize("adapter", BOTH.values(), ids=BOTH)


def layer_of(adapter, p=P, dtype=torch.float64, bias=True):
    """A trained adapter with dropout on a frozen base."""
    layer = ac.AdaptedLinear(nn.Linear(K, N, bias, dtype=dtype).requires_grad_(False), adapter, dropout=p)
    move(layer)
    return layer


def rows(m=7, **options):
    """Tokens that want a gradient."""
    return torch.randn(m, K, **{"dtype": torch.float64, **options}).requires_grad_()


def drawn(shape, *rates, seed=1):
    """What D keeps and by how much, for the adapters of a call after `manual_seed(seed)`."""
    torch.manual_seed(seed)
    state, m = fresh_seed(torch.device("cpu")), shape[0]
    return [bernoulli(state, STREAMS * i, p, (m, *shape[1:]), torch.float64) / (1 - p) for i, p in enumerate(rates)]


def called(layer, x, seed=1):
    """A call after `manual_seed(seed)`."""
    torch.manual_seed(seed)
    return layer(x)


def gradients(y, wanted):
    """Of a fixed weighting of y."""
    gy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return torch.autograd.grad(y, wanted, gy)


def same_step(got, want, tensors):
    """Output and gradients."""
    close(got, want, "y")
    for i, (a, b) in enumerate(zip(gradients(got, tensors), gradients(want, tensors), strict=True)):
        close(a, b, f"gradient {i}", terms=10.0)


@weight_forms
@pytest.mark.parametrize("bias", [True, False])
def test_only_the_update_of_the_weight_is_dropped(adapter, bias):
    layer, x = layer_of(adapter, bias=bias), rows()
    (mask,) = drawn(x.shape, P)
    update, shift = layer.delta_weight(), layer.adapted_bias()
    want = F.linear(x, layer.weight, shift) + F.linear(x * mask, update)
    close(called(layer, x), want)


def plain(adapter, leaves, x, dropped, W, b):
    """The methods of this file in torch, differentiable."""
    v, y = leaves, F.linear(x, W, b)
    match adapter.name:
        case "lora":
            return y + dropped @ (16 / 3 * (v["B"] @ v["A"])).T
        case "hra":
            changed = W
            for u in v["U"].T:
                changed = changed - 2 * torch.outer(changed @ u, u) / (u @ u)
            return y + dropped @ (changed - W).T
        case "ia3":
            return F.linear(x, W, v["l"] * b) + dropped @ (v["l"][:, None] * W - W).T
        case "parallel_adapter":
            return y + torch.relu(dropped @ v["A"].T) @ v["B"].T
        case "lora_mixture":
            gate = torch.softmax(dropped @ v["G"].T, 1)
            return y + 16 / 3 * torch.einsum("me,erk,mk,enr->mn", gate, v["A"], dropped, v["B"])


@pytest.mark.parametrize("name", ["lora", "hra", "ia3", *OUTPUT])
def test_outputs_and_gradients_are_those_of_the_definition_with_this_mask(name):
    layer, x = layer_of(BOTH[name]), rows()
    (mask,) = drawn(x.shape, P)
    leaves = layer.leaves()
    want = plain(BOTH[name], leaves, x, x * mask, layer.weight, layer.bias)
    same_step(called(layer, x), want, [x, *leaves.values()])


@output_forms
def test_in_output_form_the_output_so_far_is_not_dropped(adapter):
    layer, x = layer_of(adapter), rows()
    with torch.no_grad():
        layer.leaves()["B"].zero_()
    close(called(layer, x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("names", [("lora", "hra"), ("oft", "lora"), ("ia3", "road")], ids="-".join)
def test_two_adapters_with_rates_of_their_own(names):
    model, x = nn.Sequential(nn.Linear(K, N, dtype=torch.float64)), rows()
    for name, p in zip(names, (0.2, 0.6), strict=True):
        ac.inject(model, BOTH[name], ["0"], name=name, dropout=p)
    move(model)
    ac.set_active(model, names[:1])
    first = model[0].adapted_weight()
    ac.set_active(model, names)
    both, W = model[0].adapted_weight(), model[0].weight
    one, two = drawn(x.shape, 0.2, 0.6)
    want = F.linear(x, W, model[0].adapted_bias()) + (x * one) @ (first - W).T + (x * two) @ (both - first).T
    close(called(model, x), want)
    assert not torch.equal(one == 0, two == 0)


def test_only_one_of_two_adapters_drops():
    model, x = nn.Sequential(nn.Linear(K, N, dtype=torch.float64)), rows()
    ac.inject(model, hra(r=4), ["0"], name="a")
    ac.inject(model, parallel_adapter(d=5), ["0"], name="b", dropout=0.5)
    move(model)
    v, (_, mask) = model[0].leaves("b"), drawn(x.shape, 0.0, 0.5)
    ac.set_active(model, "a")
    y = model(x)
    ac.set_active(model, ("a", "b"))
    close(called(model, x), y + torch.relu((x * mask) @ v["A"].T) @ v["B"].T)


@every_form
def test_the_seed_decides(adapter):
    layer, x = layer_of(adapter), rows()
    first = called(layer, x)
    assert torch.equal(first, called(layer, x))
    assert not torch.equal(first, called(layer, x, seed=2))
    assert not torch.equal(called(layer, x), layer(x)), "the next call draws anew"


def test_layers_and_calls_have_masks_of_their_own():
    model = nn.ModuleList([nn.Linear(K, N, bias=False, dtype=torch.float64) for _ in range(2)])
    ac.inject(model, lora(r=3), "all-linear", dropout=P)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    x = torch.ones(50, K, dtype=torch.float64)
    torch.manual_seed(3)
    first, other, again = model[0](x), model[1](x), model[0](x)
    assert len({tuple(y[:, 0].tolist()) for y in (first, other, again)}) == 3


def test_tokens_of_any_shape_are_rows():
    layer, x = layer_of(lora(r=3)), torch.randn(2, 3, 5, K, dtype=torch.float64)
    assert torch.equal(called(layer, x), called(layer, x.reshape(30, K)).reshape(2, 3, 5, N))


@every_form
def test_eval_ignores_it(adapter):
    layer, x = layer_of(adapter).eval(), rows()
    bare = ac.AdaptedLinear(nn.Linear(K, N, dtype=torch.float64), adapter)
    bare.load_state_dict(layer.state_dict())
    state = torch.random.get_rng_state()
    close(layer(x), bare(x))
    assert torch.equal(torch.random.get_rng_state(), state)
    if adapter.name in WEIGHT:
        close(layer(x), F.linear(x, layer.adapted_weight(), layer.adapted_bias()))


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_the_mean_over_many_draws_is_x(p):
    layer, draws = ac.AdaptedLinear(nn.Linear(4, 4, bias=False).double(), lora(r=4, alpha=4.0), dropout=p), 40_000
    with torch.no_grad():
        layer.weight.zero_()
        for leaf in layer.leaves().values():
            leaf.copy_(torch.eye(4))
    x = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    y = layer(x.expand(draws, 4)).detach() / x  # D(x) / x: 0 or 1 / (1 - p)
    assert torch.allclose(y[y != 0], torch.tensor(1 / (1 - p), dtype=torch.float64), rtol=1e-12)
    deviation = (p / (1 - p) / draws) ** 0.5
    assert ((y.mean(0) - 1).abs() < 5 * deviation).all()
    apart = torch.corrcoef(y.T) - torch.eye(4)
    assert apart.abs().max() < 5 / draws**0.5
    along = (y[1:] * y[:-1]).mean(0) - 1
    assert (along.abs() < 5 * ((1 - p) ** -2 / draws) ** 0.5).all(), "neighbouring tokens draw independently"


def test_three_projections_of_one_x_keep_x_once_and_no_mask():
    model = nn.Sequential(*(nn.Linear(1024, 1024, dtype=torch.bfloat16) for _ in range(3)))
    ac.inject(model, lora(r=16), "all-linear", dropout=0.05)
    x = torch.randn(1024, 1024, dtype=torch.bfloat16, requires_grad=True)
    assert x.nbytes <= saved(model, x) <= 1.05 * x.nbytes


@pytest.mark.parametrize("adapter", METHODS.values(), ids=METHODS)
def test_neither_the_mask_nor_the_dropped_tokens_are_kept(adapter):
    layer, x, found = layer_of(adapter), rows(37), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
        layer(x)
    assert (x != 0).all()
    assert not [t.shape for t in found if t.shape == x.shape and (t == 0).any()], "a mask, or what it was laid on"
    seeds = sum(t.ndim == 0 and t.dtype == torch.int64 for t in found)
    assert seeds == layer.stack(training=True).seeded, "the seed, where W' is not W"


@pytest.mark.parametrize("reentrant", [True, False])
@every_form
def test_a_checkpoint_draws_the_same_mask_again(adapter, reentrant):
    layer, found = layer_of(adapter), []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
        x = rows().detach().fill_(0.5).requires_grad_()
        layer.zero_grad()
        torch.manual_seed(2)
        y = call(x)
        y.square().sum().backward()
        found.append([y.detach(), x.grad, *(p.grad for p in ac.adapter_parameters(layer))])
    for a, b in zip(*found, strict=True):
        close(a, b)


def test_under_vmap_and_autocast():
    layer, x = layer_of(lora(r=3), dtype=torch.float32), torch.randn(4, K).expand(3, 4, K)
    same, different = (torch.func.vmap(layer, randomness=how)(x) for how in ("same", "different"))
    assert torch.equal(same[0], same[1])
    assert not torch.equal(different[0], different[1])
    with torch.autocast("cpu", torch.bfloat16):
        y = called(layer, x[0])
    assert y.dtype == torch.bfloat16
    assert (y - called(layer, x[0])).norm() < 0.02 * y.norm()


def test_bfloat16_tokens_with_float32_masters():
    layer, x = layer_of(lora(r=3), dtype=torch.bfloat16), rows(dtype=torch.bfloat16)
    (mask,) = drawn(x.shape, P)
    y = called(layer, x)
    leaves = {n: t.detach().double().requires_grad_() for n, t in layer.leaves().items()}
    wide, W = x.detach().double().requires_grad_(), layer.weight.double()
    want = plain(lora(r=3), leaves, wide, wide * mask, W, layer.bias.double())
    eps = torch.finfo(torch.bfloat16).eps
    assert (y.double() - want).norm() < eps * want.norm()
    found, wanted = gradients(y, [x, *layer.leaves().values()]), gradients(want, [wide, *leaves.values()])
    assert [g.dtype for g in found] == [torch.bfloat16, torch.float32, torch.float32]
    for a, b in zip(found, wanted, strict=True):
        assert (a.double() - b).norm() < 4 * eps * b.norm()


def test_the_rate_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(K, N), nn.Linear(N, K))
    plain_model = nn.Sequential(nn.Linear(K, N), nn.Linear(N, K))
    plain_model.load_state_dict(model.state_dict())
    ac.inject(model, lora(r=3), ["0"], dropout=0.25)
    ac.inject(model, lora(r=3), ["1"])
    move(model)
    ac.save(model, tmp_path)
    loaded, x = ac.load(plain_model, tmp_path), torch.randn(5, K)
    assert [layer.dropouts["default"] for layer in loaded] == [0.25, 0.0]
    assert torch.equal(called(loaded, x), called(model, x))


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, "0.1", None, float("nan")])
def test_what_is_no_probability_is_refused(p):
    model = nn.Sequential(nn.Linear(K, N))
    with pytest.raises(InjectError, match="at least 0 and below 1"):
        ac.inject(model, lora(r=3), ["0"], dropout=p)
    assert type(model[0]) is nn.Linear
