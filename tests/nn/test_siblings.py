"""Layers that are fed one tensor compute their projections of it as one product: numbers, counts, bytes."""

import copy
import gc

import pytest
import torch
from methods_small import METHODS, Dense, distance, move, small
from siblings_small import (
    Block,
    K,
    M,
    N,
    agree,
    alone,
    by_definition,
    fresh,
    fused,
    groups,
    rows,
    stepped,
    went_together,
)
from test_kept import alive, saved
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import adaptc as ac
from adaptc.errors import InjectError
from adaptc.methods import dora, hra, ia3, lora, parallel_adapter, vera
from adaptc.runtime import siblings

SIZED = {name: small(a.method, N, K) for name, a in METHODS.items()}
TOGETHER = ("lora", "dora", "vera", "hra", "pissa", "adalora", "delora", "nola", "parallel_adapter", "loretta", "psoft")


pytestmark = pytest.mark.usefixtures("at_any_price")


@pytest.mark.parametrize("name", SIZED)
def test_every_method_is_its_definition(name):
    block = fused(SIZED[name])
    asks = any(layer.stack(True).given for layer in (block.q, block.k, block.v))
    x = torch.randn(2, M // 2, K, dtype=torch.float64, requires_grad=True)
    want = stepped(alone(block), fresh(x))
    block.zero_grad()
    agree(stepped(block, x), want)
    assert went_together(block) == any(groups(block).values())
    assert went_together(block) or name not in TOGETHER
    if not asks and not block.q._modes[True].seeded:
        agree(stepped(block, fresh(x)), by_definition(block, x))


def test_the_first_call_goes_alone_and_shows_the_rest():
    block = fused(warm=False)
    assert ac.fuse_siblings(block) == [("q", "k", "v")]
    block(rows())
    assert not any(groups(block).values())
    block(rows())
    assert groups(block) == {"q": ["k", "v"], "k": ["q", "v"], "v": ["q", "k"]}
    assert "active, with k and v" in str(ac.summary(block))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_with_and_without_gradients(training, grad):
    block, x = fused().train(training), rows()
    other = alone(block)
    with torch.set_grad_enabled(grad):
        for y, w in zip(block(x), other(x), strict=True):
            assert distance(y, w) < 1e-14
            assert y.requires_grad == grad
    assert went_together(block)


@pytest.mark.parametrize(
    "adapters",
    [(lora(r=4), lora(r=2)), (dora(r=4), lora(r=2)), (hra(r=4), lora(r=3)), (lora(r=2), parallel_adapter(d=3))],
)
def test_several_adapters(adapters):
    block = ac.inject(Block(), adapters[0], ["q", "k", "v"], name="first")
    block = fused(adapters[1], block, name="second")
    agree(stepped(block, x := rows()), by_definition(block, x))
    assert went_together(block)


def test_layers_of_different_sizes_and_adapters():
    block = Block(n=(40, 16, 24))
    ac.inject(block, lora(r=2), ["q"], name="thin")
    ac.inject(block, dora(r=4), ["k"], name="normed")
    block = fused(hra(r=2), block)
    agree(stepped(block, x := rows()), by_definition(block, x))
    assert went_together(block)


def test_where_one_has_no_projection_the_others_go_together():
    block = ac.inject(Block(), ia3(), ["k"])
    ac.inject(block, lora(r=4), ["q", "v"], name="other", fuse_siblings=True)
    move(block)
    for _ in range(2):
        agree(stepped(block, x := rows()), by_definition(block, x))
    assert went_together(block, "q", "v")


def test_base_weights_that_are_trained():
    block = fused(dora(r=4)).requires_grad_(True)
    agree(stepped(block, x := rows()), by_definition(block, x))
    assert went_together(block)


def test_frozen_leaves_and_an_x_without_a_gradient():
    for frozen in ("A", "B"):
        block = fused()
        for layer in (block.q, block.v):
            layer.leaves()[frozen].requires_grad_(False)
        x = rows().detach()
        want = stepped(alone(block), x)
        block.zero_grad()
        agree(stepped(block, x), want)
        assert went_together(block)


def plain(x, layer, dtype):
    """LoRA as it is written with torch, products in one dtype."""
    A, B = (layer.leaves()[n].to(dtype) for n in "AB")
    s = dict(layer._leaves("default").adapter.hyper)["alpha"] / len(A)
    return F.linear(x, layer.weight, layer.bias) + s * F.linear(F.linear(x, A), B)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision(dtype):
    block, x = fused(block=Block(dtype=dtype)), rows(dtype=dtype)
    assert block.q.leaves()["A"].dtype == torch.float32
    theirs = stepped(block, fresh(x), lambda t: [plain(t, layer, dtype) for layer in (block.q, block.k, block.v)])
    ours = stepped(block, x)
    assert went_together(block)
    exact = by_definition(copy.deepcopy(block).double(), x.detach().double(), dtype)
    layers, eps = (block.q, block.k, block.v), torch.finfo(dtype).eps
    sizes = [Dense.of(layer).magnitudes(x.detach().double()).norm() for layer in layers]
    sizes += [0 if e is None else e.norm() for e in exact[3:]]
    for a, b, e, size in zip(ours, theirs, exact, sizes, strict=True):
        assert (a is None) == (b is None) == (e is None)
        if e is not None:
            assert a.dtype == b.dtype
            bound = 2 * (b.double() - e).norm() + 2 * eps * size
            assert (a.double() - e).norm() <= bound


class Products(TorchDispatchMode):
    """The sizes of every product of two matrices."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_"):
            a, b = args[-2:]
            self.found.append((a.shape[0], a.shape[1], b.shape[1]))
        return func(*args, **(kwargs or {}))

    def of(self, *sizes):
        """How many have these sizes, in any order."""
        return sum(sorted(f) == sorted(sizes) for f in self.found)


@pytest.mark.parametrize(
    ("adapter", "columns", "gradients"), [(lora(r=4), 12, 1), (vera(r=4), 4, 0)], ids=["lora", "vera"]
)
def test_one_product_forward_and_one_for_the_gradient(adapter, columns, gradients):
    block, x = fused(adapter), rows()
    x.requires_grad_(False)
    block(x)
    with Products() as forward:
        ys = block(x)
    assert went_together(block)
    assert (forward.of(M, K, columns), forward.of(M, K, N), forward.of(M, 4, N)) == (1, 3, 3)
    assert len(forward.found) == 7
    with Products() as backward:
        torch.autograd.backward(ys, [torch.ones_like(y) for y in ys])
    assert backward.of(M, K, columns) == gradients
    assert columns == 4 or not backward.of(M, K, 4)
    with Products() as before:
        alone(block)(x)
    assert not before.of(M, K, 12)


@pytest.mark.parametrize("adapter", [lora(r=4), dora(r=4), vera(r=4), hra(r=4)], ids=["lora", "dora", "vera", "hra"])
def test_no_more_is_kept(adapter):
    block, x = fused(adapter), rows()
    ys = block(x)  # tables, and the shares of the last
    del ys
    model = nn.ModuleList([block.q, block.k, block.v])
    other = alone(block)
    theirs = nn.ModuleList([other.q, other.k, other.v])
    ours = saved(model, x), alive(model, x)
    assert went_together(block)
    projections = 3 * M * 4 * x.itemsize
    assert ours[0] <= saved(theirs, x) + projections
    assert ours[1] <= alive(theirs, x) + projections


def test_the_price_decides(monkeypatch):
    monkeypatch.undo()
    siblings.joint.cache_clear()
    block = fused()
    block(rows())
    assert not any(groups(block).values())


def test_on_and_off():
    block, x = fused(), rows()
    assert ac.fuse_siblings(block, False) == []
    assert all(layer.siblings is None for layer in block.children())
    block(x)
    assert not any(groups(block).values())
    assert ac.fuse_siblings(nn.ModuleDict({"a": block, "b": Block()})) == [("a.q", "a.k", "a.v")]
    assert ac.fuse_siblings(nn.Sequential(nn.Linear(3, 3))) == []


def test_a_layer_alone_and_one_of_another_width_are_no_siblings():
    model = nn.ModuleDict({"a": nn.Linear(K, N), "b": nn.Linear(N, K), "c": nn.Linear(K, N)})
    ac.inject(model, lora(r=2), "all-linear", fuse_siblings=True)
    assert model["a"].siblings is model["c"].siblings
    assert model["b"].siblings is None


def test_an_injection_that_fails_groups_nothing():
    block = Block()
    with pytest.raises(InjectError):
        ac.inject(block, lora(r=2), ["nowhere"], fuse_siblings=True)
    assert [type(m) for m in block.children()] == [nn.Linear] * 3
    ac.inject(block, lora(r=2), ["q", "k", "v"])
    assert all(layer.siblings is None for layer in block.children())
    with pytest.raises(InjectError):
        ac.inject(block, lora(r=2), ["q", "k", "v"], fuse_siblings=True)
    assert all(layer.siblings is None for layer in block.children())
    gc.collect()


def test_a_limit_on_what_is_kept_is_kept_to():
    block = fused(max_saved="1.1x")
    agree(stepped(block, x := rows()), by_definition(block, x))
    assert not any(groups(block).values())
    move(block)
