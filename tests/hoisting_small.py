"""Adapted layers too large for one native call, and what holds for each of their calls without gradients."""

import pytest
import torch
from torch import nn

import adaptc as ac
from adaptc.methods import boft, dora, fourierft, hra, loha, lokr, lora, oft, vera
from adaptc.runtime.planning import BUCKETS, PRODUCTS

DECODED = BUCKETS[1][0]  # tokens
N, K = 384, 352  # too large for one native call
ALL = [hra(r=4), dora(r=4), oft(b=16), boft(), fourierft(m=50), lora(r=4), loha(r=4), vera(r=8), lokr(r=4)]
HELD = [hra(r=4), dora(r=4), oft(b=16), boft()]
every = pytest.mark.parametrize("adapter", ALL, ids=str)
every_held = pytest.mark.parametrize("adapter", HELD, ids=str)
WITHOUT = {"no_grad": torch.no_grad, "inference": torch.inference_mode}
assert N * K > PRODUCTS


def net(adapter, layers=1, dtype=torch.float64):
    """Trained adapters on frozen layers."""
    sizes = [(K, N), (N, K)][:layers]
    model = nn.Sequential(*(nn.Linear(k, n, dtype=dtype) for k, n in sizes))
    ac.inject(model, adapter, "all-linear")
    shift(model)
    return model.eval()


@torch.no_grad()
def shift(model, size=0.1):
    """Other values of every trained leaf."""
    for p in ac.adapter_parameters(model):
        p.add_(size * torch.randn_like(p))


def rows(dtype=torch.float64, m=3):
    return torch.randn(m, K, dtype=dtype)


def assert_right(model, x=None):
    """What the layers give is what their adapted weights say, in every way of a call without gradients, and twice."""
    x = rows(model[0].weight.dtype) if x is None else x
    want, eps = x, torch.finfo(x.dtype).eps
    for layer in model:
        want = want @ layer.adapted_weight().to(x.dtype).T + layer.bias.detach()
    for context in (*WITHOUT.values(), torch.no_grad, torch.enable_grad):
        with context():
            got = model(x).detach()
        assert (got - want).norm() <= 50 * eps * want.norm()


def add_in_no_grad(p):
    with torch.no_grad():
        p.add_(0.1)
