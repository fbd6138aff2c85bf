"""The same layer on every backend gives the same numbers."""

import copy

import pytest
import torch
from oracle import assert_close
from strategies import bias_form, output_form, weight_form
from torch import nn

import adaptc as ac
from adaptc import env
from adaptc.case import through
from adaptc.nn.linear import AdaptedLinear

BACKENDS = ("reference", "aten")
N, K = 12, 8
INPUTS = {
    "rows": lambda: torch.randn(5, K),
    "one row": lambda: torch.randn(1, K),
    "no rows": lambda: torch.randn(0, K),
    "a vector": lambda: torch.randn(K),
    "4-D": lambda: torch.randn(2, 1, 3, K),
    "strided": lambda: torch.randn(K, 2, 3).permute(2, 1, 0),
}
ADAPTERS = [form(seed=seed) for form in (weight_form, bias_form, output_form) for seed in range(7, 19, 3)]


@pytest.fixture
def use(monkeypatch):
    """Choose a backend as the environment would."""

    def choose(backend):
        monkeypatch.setenv("ADAPTC_BACKEND", backend)
        env.options.cache_clear()
        assert env.options().backend == backend

    yield choose
    monkeypatch.undo()
    env.options.cache_clear()


def layer_of(adapter):
    """A float64 layer whose parameters have left their initial values."""
    layer = AdaptedLinear(nn.Linear(K, N).double(), adapter)
    with torch.no_grad():
        for p in layer.adapters.parameters():
            if p.is_floating_point():
                p.add_(0.1 * torch.rand_like(p))
    return layer.requires_grad_(True)


def results(layer, x):
    """y and every gradient."""
    x = x.detach().requires_grad_()
    y = layer(x)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    found = torch.autograd.grad(y.cos().sum(), wanted, allow_unused=True)
    return [y, *(torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True))]


@pytest.mark.parametrize("shape", INPUTS)
@pytest.mark.parametrize("adapter", ADAPTERS, ids=repr)
def test_backends_agree(adapter, shape, use):
    layer, x = layer_of(adapter), INPUTS[shape]().double()
    found = {}
    for backend in BACKENDS:
        use(backend)
        for way in ("plain", "many"):
            with through(way):
                found[backend, way] = results(copy.deepcopy(layer), x)
    for way in ("plain", "many"):
        assert found["aten", way][0].shape == (*x.shape[:-1], N)
        for ours, expected in zip(found["aten", way], found["reference", "plain"], strict=True):
            assert ours.dtype == expected.dtype
            assert_close(ours, expected, repr(adapter))


@pytest.mark.parametrize("adapter", ADAPTERS, ids=repr)
def test_backends_agree_without_gradients(adapter, use):
    layer, x = layer_of(adapter), torch.randn(3, K).double()
    use("reference")
    expected = layer(x)
    use("aten")
    with torch.no_grad():
        assert_close(layer(x), expected, repr(adapter))


def test_an_unknown_backend_is_refused(use):
    with pytest.raises(ac.errors.AdaptcError, match="'typo': one of aten, reference"):
        use("typo")
