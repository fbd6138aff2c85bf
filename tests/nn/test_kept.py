"""Bytes kept from forward to backward, measured in two ways, over the bytes of x."""

import pytest
import torch
from methods_small import METHODS, K, adapted
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import adaptc as ac
from adaptc.explain import kept
from adaptc.ir.dims import TOKENS
from adaptc.ir.prims import Reduce
from adaptc.methods import catalogue

TOKENS_M = 1024


def storages(tensors):
    """Storage address -> bytes, each once."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def given(model):
    """What is there anyway: parameters and buffers."""
    return storages([*model.parameters(), *model.buffers()])


def saved(model, x):
    """What autograd is asked to save, beside parameters and buffers."""
    found = []

    def pack(t):
        found.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = run(model, x)
    there = given(model)
    assert all(out.requires_grad for out in y)
    return sum(b for key, b in storages(found).items() if key not in there)


class Births(TorchDispatchMode):
    """Remembers the memory that operations make, without keeping it; not what was there before."""

    def __init__(self):
        super().__init__()
        self.born = {}
        self.older = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        keys = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        self.older |= keys - self.born.keys()
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if torch.is_tensor(t) and t.untyped_storage()._cdata not in self.older:
                storage = t.untyped_storage()
                self.born[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out


def alive(model, x):
    """What is alive between forward and backward, beside y, parameters and buffers; x counts if it is kept."""
    with Births() as births:
        there = x.clone()
        y = run(model, there)
    del there
    skip = {t.untyped_storage()._cdata for t in y}
    left = [size for key, (ref, size) in births.born.items() if key not in skip and not ref.expired()]
    return sum(left)


def run(model, x):
    """Every layer on the same x."""
    return [layer(x) for layer in model]


def ratios(adapter, n, d, count=1):
    """Both measures over the bytes of x, for a bfloat16 base with float32 leaves; the first call's caches count."""
    x = torch.randn(TOKENS_M, d, dtype=torch.bfloat16, requires_grad=True)
    layers = [nn.Linear(d, n, dtype=torch.bfloat16) for _ in range(count)]
    model = ac.inject(nn.Sequential(*layers), adapter, "all-linear")
    assert all(p.dtype == torch.float32 for p in ac.adapter_parameters(model))
    return alive(model, x) / x.nbytes, saved(model, x) / x.nbytes


def test_the_measures_see_what_torch_keeps():
    """A layer that keeps x, its product with W and a temporary of x's size keeps two of them."""

    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(8, 8))

        def forward(self, x):
            return (x @ self.w).sigmoid() * 2.0 + x.abs().mean()

    x = torch.randn(4, 8, requires_grad=True)
    assert saved(nn.ModuleList([Gate()]), x) == 2 * x.nbytes
    assert alive(nn.ModuleList([Gate()]), x) == 2 * x.nbytes


LIMITS = [
    ("hra", {"r": 32}, 1.1),
    ("oft", {}, 1.1),
    ("boft", {}, 2.1),
    ("boft", {"scale": False}, 1.1),
    ("dora", {"r": 32}, 2.1),
]


@pytest.mark.parametrize(("name", "hyper", "limit"), LIMITS)
def test_one_layer_of_3072(name, hyper, limit):
    in_memory, by_hooks = ratios(catalogue()[name](**hyper), 3072, 3072)
    print(f"{name} {hyper}: {in_memory:.3f} alive, {by_hooks:.3f} saved")
    assert 1 <= by_hooks <= limit
    assert 1 <= in_memory <= limit


def test_lora_on_three_projections_of_one_x():
    in_memory, by_hooks = ratios(catalogue()["lora"](r=16), 1024, 1024, count=3)
    print(f"lora on q, k, v: {in_memory:.3f} alive, {by_hooks:.3f} saved")
    assert 1 <= by_hooks <= 1.05
    assert 1 <= in_memory <= 1.05


every_method = pytest.mark.parametrize("adapter", METHODS.values(), ids=METHODS)


@every_method
def test_what_is_kept_is_what_explain_says(adapter):
    layer = adapted(adapter)
    for m in (3, 17):
        x = torch.randn(m, K, dtype=torch.float64, requires_grad=True)
        model = nn.ModuleList([layer])
        alive(model, x)  # constant tables are built once per device and program: no call keeps them
        said = kept(layer.plan(m), layer.stack().arguments, "float64", {TOKENS: m})
        assert saved(model, x) == said["bytes"] == alive(model, x)
        assert said["over x"] == pytest.approx(said["bytes"] / x.nbytes, abs=1e-4)


@every_method
def test_without_a_gradient_nothing_is_kept(adapter):
    layer = adapted(adapter)
    x = torch.randn(5, K, dtype=torch.float64)
    with torch.no_grad():
        layer(x)
        assert alive(nn.ModuleList([layer]), x) == 0
    layer.requires_grad_(False)
    layer(x)
    assert not layer(x).requires_grad
    assert alive(nn.ModuleList([layer]), x) == 0


@every_method
def test_x_is_kept_as_it_came_and_never_copied(adapter):
    layer, found = adapted(adapter), []
    x = torch.randn(6, 8, 2 * K, dtype=torch.float64, requires_grad=True)[::2, 1::2, ::2]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
        layer(x)
    own = x.untyped_storage().data_ptr()
    rows = [t for t in found if t.untyped_storage().data_ptr() == own or t.reshape(-1).equal(x.reshape(-1))]
    assert len(rows) <= 1
    assert all(t.untyped_storage().data_ptr() == own for t in rows)


@ac.adapter(identity=False)
def peaked(W):
    """Rows scaled by a maximum that takes as much to compute again as what is kept."""
    n, _ = W.shape
    A, B, C = (ac.param(name, size, ac.normal(1)) for name, size in (("A", (n, 64)), ("B", (64, 9)), ("C", (64, 9))))
    return ac.diag(2 + ac.tanh(ac.max(A @ B - 2 * (A @ C), axis=1))) @ W


@pytest.mark.parametrize(("n", "k"), [(33, 20), (64, 96)])
def test_a_maximum_is_not_kept_apart_from_what_it_is_the_largest_of(n, k):
    """Its gradient asks which entry it is: of values that were computed again, and round otherwise, it may be none."""
    layer = ac.AdaptedLinear(nn.Linear(k, n), peaked)
    assert not any(isinstance(one.node, Reduce) for one in layer.plan(TOKENS_M).kept)
    ac.verify(peaked, n, k)
