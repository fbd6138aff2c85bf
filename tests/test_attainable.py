"""Every row of bench/attainable.json: what the default plan keeps and computes is at most 1.05 x the least known."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import adaptc as ac
from adaptc import methods
from adaptc.ir.dims import TOKENS, value
from adaptc.nn.linear import AdaptedLinear
from adaptc.plan.evaluate import weight_entries
from adaptc.plan.hoist import hoisted
from adaptc.plan.plan import steps, total
from adaptc.runtime.planning import bucket, planned
from adaptc.runtime.stack import stack

ROWS = json.loads((Path(__file__).parents[1] / "bench" / "attainable.json").read_text())["rows"]
N, M, DECODED, SLACK = 3072, 1024, 4, 1.05
OURS = {"fourierft": {"n_frequency": "m"}, "lokr": {"factor": "near"}, "road": {"group": "g"}, "boft": {"scale": None}}
"""Hyper-parameters that have another name here; boft always has its scale."""
MISSED = {
    "osf": {"backward", "kept"},  # x V^T is kept: forward and backward together are 7.5 base products, the row has 8
}
"""What no plan of ours reaches yet, and what it would need."""


def adapter(name):
    """The method of a row, with its hyper-parameters."""
    names = OURS.get(name, {})
    hyper = {names.get(key, key): v for key, v in ROWS[name]["hyper"].items()}
    hyper.pop(None, None)
    return getattr(methods, name)(**hyper)


def decode(one):
    """GEMM FLOPs of a call of four tokens over the base's, with what is held between calls for nothing."""
    composed = stack(((one.trace(N, N), 0.0),), N, N, True, False)
    wants = (False,) * len(composed.arguments)
    dtypes = tuple("int64" if a.kind == "integer" else "bfloat16" for a in composed.arguments)
    chosen = planned(composed, (dtypes, wants), "cpu", bucket(DECODED, N, N))
    held = hoisted(chosen.y, chosen.task, weight_entries(chosen.task))
    flops = total(steps([chosen.y], held), lambda d: value(d, {TOKENS: DECODED})).gemm
    return flops / (2 * DECODED * N * N)


@pytest.mark.parametrize("name", ROWS)
def test_the_default_plan_reaches_the_row(name):
    one, row = adapter(name), ROWS[name]
    facts = ac.explain(one, N, N, M, dtype="bfloat16").to_dict()
    found = {
        "kept": facts["kept"]["over x"],
        "forward": facts["cost"]["forward over base"],
        "backward": facts["cost"]["backward over base"],
        "decode": decode(one),
    }
    missed = {what for what, amount in found.items() if amount > SLACK * row[what]}
    assert missed == MISSED.get(name, set()), found


def test_at_most_three_rows_miss():
    assert len(MISSED) <= 3


def in_place(total_, a, b, out_shape=None, **_):
    """The FLOPs of addmm_, which torch's counter does not know, by shapes."""
    return 2 * a[0] * a[1] * b[1]


@pytest.mark.parametrize("name", ["lora", "dora", "hra", "oft", "vera", "loha", "miss", "lora_xs"])
def test_torch_counts_the_same(name):
    """The FLOPs of torch's own counter, which sees matrix products alone: sums of elementwise products it does not."""
    layer = AdaptedLinear(nn.Linear(64, 96, dtype=torch.float64).requires_grad_(False), getattr(methods, name)())
    x, m = torch.randn(300, 64, dtype=torch.float64, requires_grad=True), 300
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counter:
        layer(x).sum().backward()
    chosen = layer.plan(m)
    ours = total([*chosen.forward, *chosen.backward], lambda d: value(d, {TOKENS: m})).gemm
    counted = counter.get_total_flops()
    assert 0.99 * ours <= counted <= ours
