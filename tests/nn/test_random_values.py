"""Noise and dropout inside an equation: new in every training forward, gone in eval and in the merged weight."""

import pytest
import torch
from methods_small import K, N, close, move
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import adaptc as ac
from adaptc.errors import EquationError
from adaptc.nn.call import fresh_seed
from adaptc.runtime.random import bernoulli


@ac.adapter
def noisy(W, *, std=0.5):
    """The bare noise, times a trained size per output."""
    return W + ac.diag(ac.param("s", (W.shape[0],), "ones")) @ (std * ac.noise(W.shape))


@ac.adapter
def noisy_vectors(W):
    """Two independent noises."""
    p, q = ac.param("p", (W.shape[0],), "ones"), ac.param("q", (W.shape[1],), "ones")
    return ac.diag(p + ac.noise(p.shape)) @ W @ ac.diag(q + ac.noise(q.shape))


@ac.adapter
def dropped_factor(W, *, r=4, p=0.5):
    """Columns of the update vanish with the entries of A."""
    A = ac.param("A", (r, W.shape[1]), "kaiming_uniform")
    B = ac.param("B", (W.shape[0], r), "zeros")
    return W + B @ ac.dropout(A, p)


@ac.adapter
def dropped_hidden(x, y, *, r=4, p=0.5):
    """Dropout of the hidden tokens."""
    A = ac.param("A", (r, x.shape[1]), "kaiming_uniform")
    B = ac.param("B", (y.shape[1], r), "zeros")
    return y + ac.dropout(x @ A.T, p) @ B.T


@ac.adapter
def finegates(W, *, std=0.1):
    """Noisy gates of rows and columns, cut to [0, 1]."""
    n, k = W.shape
    g = (ac.param("rows", (n,), 0.5), ac.param("cols", (k,), 0.5))
    p, q = (ac.clamp(mu + std * ac.noise(mu.shape) + 0.5, 0, 1) for mu in g)
    return ac.diag(p) @ W @ ac.diag(q)


METHODS = {m.name: m() for m in (noisy, noisy_vectors, dropped_factor, dropped_hidden, finegates)}
WEIGHT = {name: a for name, a in METHODS.items() if name != "dropped_hidden"}
NOISE = ("noisy", "noisy_vectors", "finegates")
every = pytest.mark.parametrize("adapter", [pytest.param(a, id=n) for n, a in METHODS.items()])
every_weight_form = pytest.mark.parametrize("adapter", WEIGHT.values(), ids=WEIGHT)


def layer_of(adapter, n=N, k=K):
    """A trained adapter on a frozen base."""
    layer = ac.AdaptedLinear(nn.Linear(k, n, dtype=torch.float64).requires_grad_(False), adapter)
    move(layer, 0.1)
    return layer


def called(layer, x, seed=1):
    """A call after `manual_seed(seed)`."""
    torch.manual_seed(seed)
    return layer(x)


def weight_now(layer, seed=1):
    """W' of one training forward, from an identity of tokens."""
    with torch.no_grad():
        y = called(layer, torch.eye(layer.in_features, dtype=torch.float64), seed)
    return (y - layer.bias).T


@every
def test_it_is_new_in_every_training_forward(adapter):
    layer, x = layer_of(adapter), torch.randn(6, K, dtype=torch.float64)
    first = called(layer, x)
    assert not torch.equal(layer(x), first)
    assert torch.equal(called(layer, x), first)
    with torch.no_grad():
        assert torch.equal(called(layer, x), first), "training is a mode of the module, not of autograd"


@every
def test_a_checkpoint_draws_the_same_again(adapter):
    layer, found = layer_of(adapter), []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        x = torch.linspace(-1, 1, 6 * K, dtype=torch.float64).reshape(6, K).requires_grad_()
        torch.manual_seed(4)
        y = call(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, *ac.adapter_parameters(layer)])))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@every_weight_form
def test_eval_and_merge_have_none(adapter):
    layer, x = layer_of(adapter), torch.randn(6, K, dtype=torch.float64)
    v, W = layer.leaves(), layer.weight.clone()
    want = {
        "noisy": lambda: W,
        "noisy_vectors": lambda: v["p"][:, None] * W * v["q"],
        "dropped_factor": lambda: W + v["B"] @ v["A"],
        "finegates": lambda: (v["rows"] + 0.5).clamp(0, 1)[:, None] * W * (v["cols"] + 0.5).clamp(0, 1),
    }[adapter.name]()
    close(layer.adapted_weight(), want)
    layer.eval()
    close(layer(x), F.linear(x, want, layer.bias))
    assert torch.equal(layer(x), layer(x))
    layer.train()
    layer.merge()
    close(layer(x), F.linear(x, want, layer.bias))
    layer.unmerge()
    assert torch.equal(layer.weight, W)


def test_eval_of_an_output_form():
    layer, x = layer_of(dropped_hidden()).eval(), torch.randn(6, K, dtype=torch.float64)
    v = layer.leaves()
    close(layer(x), F.linear(x, layer.weight, layer.bias) + x @ v["A"].T @ v["B"].T)


def test_the_noise_is_standard_normal():
    layer = ac.AdaptedLinear(nn.Linear(300, 200, bias=False, dtype=torch.float64), noisy(std=1.0))
    with torch.no_grad():
        layer.weight.zero_()
        z = torch.cat([layer(torch.eye(300, dtype=torch.float64)).T.reshape(-1) for _ in range(4)])
    count = z.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(z.pow(power).mean() - moment) < 5 * (variance / count) ** 0.5, f"moment {power}"
    for at in (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0):
        p = 0.5 * torch.special.erfc(torch.tensor(at / 2**0.5)).item()
        assert abs((z > at).double().mean() - p) < 5 * (p * (1 - p) / count) ** 0.5, f"above {at}"
    assert z.isfinite().all()
    assert 4 < z.abs().max() < 7
    grid = z[: 300 * 200].reshape(200, 300)
    for a, b in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1]), (z[:60000], z[60000:120000])):
        assert abs((a * b).mean()) < 5 / a.numel() ** 0.5


def test_two_noises_of_one_equation_are_independent():
    n, draws = 40, 400
    layer = ac.AdaptedLinear(nn.Linear(n, n, bias=False, dtype=torch.float64), noisy_vectors())
    with torch.no_grad():
        layer.weight.fill_(1.0)
        found = [layer(torch.eye(n, dtype=torch.float64)).T for _ in range(draws)]
    p = torch.stack([torch.linalg.svd(M).U[:, 0] * n**0.5 for M in found])
    q = torch.stack([torch.linalg.svd(M).Vh[0] * n**0.5 for M in found])
    for M in found:
        assert torch.linalg.matrix_rank(M) == 1
    shared = (p * q).mean(1).abs().mean()  # 1 if the two were one draw
    assert shared < 0.6


@torch.no_grad()
def test_two_adapters_and_two_layers_have_noise_of_their_own():
    model = nn.Sequential(*(nn.Linear(60, 60, bias=False, dtype=torch.float64) for _ in range(2)))
    for name in ("a", "b"):
        ac.inject(model, noisy(std=1.0), "all-linear", name=name)
    x, found = torch.eye(60, dtype=torch.float64), {}
    for names in ("a", ("a", "b")):
        ac.set_active(model, names)
        torch.manual_seed(1)
        found[names] = [layer(x).T - layer.weight for layer in model]
    (one, other), both = found["a"], found["a", "b"][0]
    second = both - one
    assert abs(second.var() - 1) < 0.1, "the first adapter's noise is what it is alone"
    for a, b in ((one, second), (one, other)):
        assert abs((a * b).mean()) < 5 / 60


def test_dropout_of_a_leaf_is_torchs():
    p, layer = 0.3, layer_of(dropped_factor(p=0.3))
    A, B = layer.leaves()["A"], layer.leaves()["B"]
    torch.manual_seed(1)
    mask = bernoulli(fresh_seed(torch.device("cpu")), 2, p, (4, K), torch.float64) / (1 - p)
    close(weight_now(layer), layer.weight + B @ (A * mask))
    kept = torch.stack([torch.linalg.lstsq(B, weight_now(layer, s) - layer.weight).solution / A for s in range(300)])
    assert torch.allclose(kept[kept > 0.5], torch.tensor(1 / 0.7, dtype=torch.float64))
    assert ((kept > 0.5).double().mean() - 0.7).abs() < 5 * (0.21 / kept.numel()) ** 0.5


@pytest.mark.parametrize(
    "name",
    ["dropped_factor", "dropped_hidden", "noisy", "finegates"],
)
def test_gradients_are_those_with_this_draw(name):
    """The output is linear in the random values' operands, so the draw is read off the output itself."""
    layer = layer_of(METHODS[name])
    x = torch.randn(9, K, dtype=torch.float64, requires_grad=True)
    v, W, gy = layer.leaves(), layer.weight, torch.randn(9, N, dtype=torch.float64)
    torch.manual_seed(1)
    seed = fresh_seed(torch.device("cpu"))
    if name == "dropped_factor":
        mask = bernoulli(seed, 2, 0.5, (4, K), torch.float64) * 2
        want = F.linear(x, W + v["B"] @ (v["A"] * mask), layer.bias)
    elif name == "dropped_hidden":
        mask = bernoulli(seed, 2, 0.5, (9, 4), torch.float64) * 2
        want = F.linear(x, W, layer.bias) + (x @ v["A"].T * mask) @ v["B"].T
    elif name == "noisy":
        z = (weight_now(layer) - W) / v["s"].detach()[:, None]
        want = F.linear(x, W + v["s"][:, None] * z, layer.bias)
    else:
        want = gated(layer, x)
    got = called(layer, x)
    close(got, want)
    wanted = [x, *v.values()]
    for a, b in zip(torch.autograd.grad(got, wanted, gy), torch.autograd.grad(want, wanted, gy), strict=True):
        close(a, b, terms=10.0)


def gated(layer, x):
    """finegates with the gates that this draw made: a rank-one mask of W, up to one factor."""
    mask = weight_now(layer) / layer.weight
    v, row, col = layer.leaves(), int(mask.sum(1).argmax()), int(mask.sum(0).argmax())
    top = mask[row, col]
    scale = mask[:, col].max()  # some gate of the rows is 1
    p, q = mask[:, col] / scale, mask[row] / top * scale
    p, q = (g.detach() for g in (p, q))
    open_p, open_q = (((g > 1e-9) & (g < 1 - 1e-9)).double() for g in (p, q))
    p = p + open_p * (v["rows"] - v["rows"].detach())
    q = q + open_q * (v["cols"] - v["cols"].detach())
    return F.linear(x, p[:, None] * layer.weight * q, layer.bias)


def test_one_seed_is_one_draw_for_every_dtype_and_way():
    x = torch.randn(6, K)
    found = []
    for dtype in (torch.float32, torch.float64):
        layer = ac.AdaptedLinear(nn.Linear(K, N, bias=False, dtype=dtype), noisy(std=1.0))
        with torch.no_grad():
            layer.weight.zero_()
        found.append(called(layer, x.to(dtype)).double())
    assert (found[0] - found[1]).norm() < 1e-5 * found[1].norm()


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_a_probability_out_of_range_names_the_line(p):
    with pytest.raises(EquationError, match=rf"between 0 and 1, got {p} \[.*test_random_values.py:\d+\]"):
        dropped_factor(p=p).trace(N, K)


def test_all_or_nothing():
    x = torch.randn(3, K, dtype=torch.float64)
    all_kept, none_kept = layer_of(dropped_factor(p=0.0)), layer_of(dropped_hidden(p=1.0))
    close(all_kept(x), F.linear(x, all_kept.adapted_weight(), all_kept.bias))
    close(none_kept(x), F.linear(x, none_kept.weight, none_kept.bias))


@pytest.mark.parametrize("make", [lambda: ac.noise((3, 2)), lambda: ac.dropout(None, 0.5)])
def test_outside_an_equation(make):
    with pytest.raises(EquationError, match="outside an @adapter function"):
        make()


@every
def test_compiled_it_draws_the_same(adapter):
    layer, x = layer_of(adapter), torch.randn(6, K, dtype=torch.float64)
    torch._dynamo.reset()
    compiled, found = torch.compile(layer, fullgraph=True, backend="aot_eager"), []
    for call in (compiled, layer):
        y = called(call, x)
        found.append([y, *torch.autograd.grad(y.square().sum(), ac.adapter_parameters(layer))])
    for a, b in zip(*found, strict=True):
        close(a, b)


@pytest.mark.parametrize("name", ["dropped_factor", "finegates"])
def test_the_contract_holds(name):
    ac.verify(METHODS[name], 12, 8)
