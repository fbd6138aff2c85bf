"""Penalties of equations: a scalar over the whole model that the training loop adds to its loss."""

import pytest
import torch
from methods_small import K, N, close, move
from torch import nn
from torch.nn import functional as F

import adaptc as ac
from adaptc.methods import lora


@ac.adapter
def norms(W, *, r=3, gamma=0.5):
    """Two penalties, as KaSA has them."""
    A = ac.param("A", (r, W.shape[1]), "kaiming_uniform")
    B = ac.param("B", (W.shape[0], r), "zeros")
    d = ac.param("d", (r,), "ones")
    ac.penalty(0.1 * ac.einsum("i,i->", d, d))
    ac.penalty(gamma * ac.norm(A @ A.T - ac.identity(r)))
    return W + B @ ac.diag(d) @ A


@ac.adapter
def shared_norm(W, *, r=3):
    """S2-LoRA's: A and B are of all layers, c of one."""
    A = ac.param("A", (r, W.shape[1]), "kaiming_uniform", shared="A")
    B = ac.param("B", (W.shape[0], r), "zeros", shared="B")
    c = ac.param("c", (r,), "ones")
    ac.penalty(ac.sum(ac.abs(c)) + 0.01 * ac.sum(A * A))
    return W + B @ ac.diag(c) @ A


@ac.adapter
def far_from_w(W):
    """Of W' itself."""
    D = ac.param("D", W.shape, "zeros")
    V = W + D
    ac.penalty(ac.norm(V, axis=None))
    return V


@ac.adapter
def of_the_output(x, y, *, r=2):
    """An output form."""
    A = ac.param("A", (r, x.shape[1]), "kaiming_uniform")
    ac.penalty(ac.sum(A * A * A))
    return y + ac.relu(x @ A.T) @ ac.param("B", (r, y.shape[1]), "zeros")


def plain(name, layer, at="default"):
    """One layer's penalty in torch."""
    v = layer.leaves(at)
    match name:
        case "norms":
            return 0.1 * v["d"].square().sum() + 0.5 * (v["A"] @ v["A"].T - torch.eye(3, dtype=v["A"].dtype)).norm()
        case "shared_norm":
            return v["c"].abs().sum() + 0.01 * v["A"][:, : layer.in_features].square().sum()
        case "far_from_w":
            return (layer.weight + v["D"]).norm()
        case "of_the_output":
            return v["A"].pow(3).sum()


METHODS = {m.name: m() for m in (norms, shared_norm, far_from_w, of_the_output)}
every = pytest.mark.parametrize("name", METHODS)


def model_of(*adapters, dtype=torch.float64):
    """Trained adapters on two layers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(K, N), nn.Tanh(), nn.Linear(N, K)).to(dtype)
    for adapter in adapters:
        ac.inject(model, adapter, "all-linear", name=adapter.name)
    move(model)
    return model


def gradients(value, model):
    """Of every trained leaf; zeros where it takes no part."""
    leaves = ac.adapter_parameters(model)
    found = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, found, strict=True)]


def same(model, want):
    """Value and gradients."""
    got = ac.penalties(model)
    assert got.shape == ()
    close(got, want)
    for a, b in zip(gradients(got, model), gradients(want, model), strict=True):
        close(a, b)


@every
def test_value_and_gradients_over_the_layers(name):
    model = model_of(METHODS[name])
    same(model, sum(plain(name, layer, name) for layer in (model[0], model[2])))


@pytest.mark.parametrize("pair", [("norms", "shared_norm"), ("shared_norm", "of_the_output")], ids="-".join)
def test_several_adapters_add_up_and_only_the_active_count(pair):
    model = model_of(*(METHODS[name] for name in pair))
    each = [sum(plain(name, layer, name) for layer in (model[0], model[2])) for name in pair]
    same(model, sum(each))
    for name, want in zip(pair, each, strict=True):
        ac.set_active(model, name)
        same(model, want)
    ac.set_active(model, [])
    assert ac.penalties(model).item() == 0


def test_a_penalty_of_the_weight_sees_the_adapters_before_it():
    model = model_of(norms(), far_from_w())
    ac.set_active(model, "norms")
    before = [layer.adapted_weight() for layer in (model[0], model[2])]
    ac.set_active(model, ("norms", "far_from_w"))
    ds = [layer.leaves("far_from_w")["D"] for layer in (model[0], model[2])]
    first = sum(plain("norms", layer, "norms") for layer in (model[0], model[2]))
    close(ac.penalties(model), first + sum((W + D).norm() for W, D in zip(before, ds, strict=True)))


@pytest.mark.parametrize("adapters", [(), (lora(r=2),)], ids=["plain", "lora"])
def test_none_is_zero(adapters):
    value = ac.penalties(model_of(*adapters))
    assert value.shape == ()
    assert value.item() == 0
    assert (value + 1.0).item() == 1


def test_a_vanishing_factor_is_no_penalty():
    model = model_of(norms(gamma=0.0))
    close(ac.penalties(model), sum(0.1 * layer.leaves("norms")["d"].square().sum() for layer in (model[0], model[2])))


@every
def test_it_is_no_part_of_the_output(name):
    model, x = model_of(METHODS[name]), torch.randn(3, K, dtype=torch.float64)
    y, before = model(x), ac.penalties(model)
    close(model(x), y)
    close(ac.penalties(model), before)
    if name == "far_from_w":
        layer = model[0]
        close(layer(x), F.linear(x, layer.weight + layer.leaves(name)["D"], layer.bias))


@pytest.mark.parametrize("name", ["norms", "shared_norm", "far_from_w"])
def test_merged_it_is_what_it_was(name):
    model = model_of(METHODS[name])
    want = ac.penalties(model)
    grads = gradients(want, model)
    ac.merge(model)
    got = ac.penalties(model)
    close(got, want)
    for a, b in zip(gradients(got, model), grads, strict=True):
        close(a, b)
    ac.unmerge(model)
    close(ac.penalties(model), want)


def test_disabled_there_is_none_and_eval_changes_nothing():
    model = model_of(norms())
    want = ac.penalties(model)
    with ac.disabled(model):
        assert ac.penalties(model).item() == 0
    close(ac.penalties(model.eval()), want)
    assert ac.penalties(ac.unload(model)).item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_low_precision_it_is_float32(dtype):
    model = model_of(norms(), dtype=dtype)
    value = ac.penalties(model)
    assert value.dtype == torch.float32
    want = sum(plain("norms", layer, "norms") for layer in (model[0], model[2]))
    assert (value - want).abs() <= 1e-6 * want.abs()
    value.backward()
    assert all(p.grad.dtype == torch.float32 for p in ac.adapter_parameters(model) if p.grad is not None)


def test_autocast_does_not_round_it():
    model = model_of(norms(), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ac.penalties(model)
    assert torch.equal(inside, ac.penalties(model))


def test_a_step_with_a_penalty_lowers_it():
    model, x = model_of(norms()), torch.randn(8, K, dtype=torch.float64)
    optimiser, values = torch.optim.SGD(ac.adapter_parameters(model), lr=0.02), []
    for _ in range(5):
        optimiser.zero_grad()
        penalty = ac.penalties(model)
        (0 * model(x).sum() + penalty).backward()
        optimiser.step()
        values.append(penalty.item())
    assert values == sorted(values, reverse=True)


def test_it_survives_a_file(tmp_path):
    model = model_of(norms())
    ac.save(model, tmp_path)
    other = model_of()
    close(ac.penalties(ac.load(other, tmp_path)), ac.penalties(model))


def test_a_penalty_beside_noise_and_what_a_call_is_given():
    @ac.adapter
    def busy(W):
        a = ac.param("a", (W.shape[0],), "ones")
        ac.penalty(ac.sum(a * a) + ac.norm(W))
        shift = ac.given("shift", (), default=0.0) + 0.1 * ac.noise((W.shape[0],))
        return ac.diag(a + shift) @ W

    model = ac.inject(nn.Sequential(nn.Linear(5, 4)), busy(), ["0"])
    ac.inject(model, busy(), ["0"], name="again")
    W = model[0].weight
    for training in (True, False):
        model.train(training)
        assert torch.allclose(ac.penalties(model), 8 + 2 * W.norm(), atol=1e-5)
        assert torch.equal(ac.penalties(model), ac.penalties(model))
