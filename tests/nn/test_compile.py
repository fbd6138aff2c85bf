"""torch.compile around adapted layers: a graph break at each, the same numbers, forward and backward."""

import pytest
import torch
from torch import nn

import adaptc as ac
from adaptc.methods import catalogue
from adaptc.verify import accepted


@pytest.mark.parametrize("name", catalogue())
def test_compiled_is_eager(name):
    n, k = accepted(catalogue()[name]())[-1]
    model = nn.Sequential(nn.Tanh(), nn.Linear(k, n), nn.Tanh())
    ac.inject(model, catalogue()[name], "all-linear")
    x = torch.randn(3, k, requires_grad=True)
    wrt = [x, *ac.adapter_parameters(model)]
    want, found = model(x), torch.compile(model, backend="aot_eager")(x)
    assert torch.equal(found, want)
    gy = torch.randn_like(want)
    for g, w in zip(torch.autograd.grad(found, wrt, gy), torch.autograd.grad(want, wrt, gy), strict=True):
        assert torch.equal(g, w)
