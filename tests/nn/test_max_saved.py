"""`max_saved`: what is kept never exceeds it, and a limit that cannot be kept raises with the least."""

import copy
import re

import pytest
import torch
from test_kept import saved
from torch import nn

import adaptc as ac
from adaptc.errors import PlanError
from adaptc.methods import boft, dora, hra, loha, lora, miss, oft, randlora, vera
from adaptc.nn.linear import AdaptedLinear
from adaptc.plan.plan import NOMINAL, max_saved

GRID = [lora(r=3), dora(r=2), hra(r=4), boft(b=4), oft(b=4), vera(r=5), loha(r=2), randlora(r=4), miss(r=4)]
SIZES = [(24, 16), (16, 40)]
every = pytest.mark.parametrize("adapter", GRID, ids=lambda a: a.name)


def layer_of(adapter, n, k, limit, dtype=torch.float64):
    return AdaptedLinear(nn.Linear(k, n, dtype=dtype).requires_grad_(False), adapter, max_saved=limit)


def least(adapter, n, k):
    """What the error says."""
    try:
        layer_of(adapter, n, k, "0.0x")
    except PlanError as error:
        return re.search(r"least that can be kept is '([\d.]+x)'", str(error)).group(1)
    return "0.0x"


@every
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_measured_bytes_never_exceed_a_share_of_x(adapter, n, k):
    smallest = least(adapter, n, k)
    for limit in {smallest, "1x", "1.5x", "3x"}:
        if float(limit[:-1]) < float(smallest[:-1]):
            with pytest.raises(PlanError):
                layer_of(adapter, n, k, limit)
            continue
        layer = layer_of(adapter, n, k, limit)
        for m in (1, 7, 64, 300):
            x = torch.randn(m, k, dtype=torch.float64, requires_grad=True)
            layer(x)
            assert saved(nn.ModuleList([layer]), x) <= float(limit[:-1]) * x.nbytes, (limit, m)


@every
def test_a_limit_changes_no_result(adapter):
    n, k = 24, 16
    torch.manual_seed(1)
    free = layer_of(adapter, n, k, None)
    tight = copy.deepcopy(free)
    tight.max_saved = least(adapter, n, k)
    tight.active = tight.active
    x = torch.randn(70, k, dtype=torch.float64, requires_grad=True)
    wanted = [[x, *(p for p in layer.parameters() if p.requires_grad)] for layer in (free, tight)]
    loose, close = (torch.autograd.grad(f(x).sin().sum(), w) for f, w in zip((free, tight), wanted, strict=True))
    for a, b in zip(loose, close, strict=True):
        torch.testing.assert_close(a, b)


@every
def test_bytes(adapter):
    n, k = 24, 16
    x = torch.randn(NOMINAL, k, dtype=torch.float64, requires_grad=True)
    limit = 2 * x.nbytes
    layer = layer_of(adapter, n, k, limit)
    layer(x)
    assert saved(nn.ModuleList([layer]), x) <= limit


def test_inject_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 24))
    with pytest.raises(PlanError, match=r"max_saved is '0.5x'.*least that can be kept is '1x'"):
        ac.inject(model, lora(r=2), "all-linear", max_saved="0.5x")
    assert [type(m) for m in model] == [nn.Linear, nn.Linear]
    ac.inject(model, dora(r=2), "all-linear", max_saved="1x")
    assert all(m.max_saved == "1x" for m in model)


def test_explain_takes_it():
    free, tight = (ac.explain(dora(r=4), 512, 512, 1024, max_saved=most).to_dict() for most in (None, "1x"))
    assert tight["kept"]["over x"] <= 1 < free["kept"]["over x"]
    assert tight["cost"]["backward"] > free["cost"]["backward"]


@pytest.mark.parametrize("bad", ["1", "x", "-1x", "1 x", 1.5, -1, True, "1.5X"])
def test_what_is_no_limit_is_refused(bad):
    with pytest.raises(PlanError, match="bytes"):
        max_saved(bad)
