"""The work of a search: for every method, few assignments are weighed, and none again for what is known."""

import pytest

from adaptc.ir.dims import TOKENS, value
from adaptc.methods import catalogue
from adaptc.plan import search
from adaptc.plan.plan import total
from adaptc.runtime.planning import planned
from adaptc.runtime.stack import stack

SIZE = 4096
MOST = 64
"""Assignments of one search: at 5 to 15 ms each for most methods, planning a layer takes less than a second. Measured:
`python -m bench planning`."""


@pytest.fixture
def weighed(monkeypatch):
    """The assignments that were weighed."""
    found, evaluate = [], search.evaluate
    monkeypatch.setattr(search, "evaluate", lambda *task: found.append(task) or evaluate(*task))
    search.plan.cache_clear()
    return found


def signature(composed, training):
    """All in float32; x and the parameters want gradients in training."""
    wants = tuple(training and leaf.role in ("token", "param") for leaf in composed.arguments)
    dtypes = tuple("int64" if leaf.kind == "integer" else "float32" for leaf in composed.arguments)
    return dtypes, wants


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("name", catalogue())
def test_few_assignments_are_weighed(name, training, weighed):
    composed = stack(((catalogue()[name]().trace(SIZE, SIZE), 0.0),), SIZE, SIZE, True, training)
    planned(composed, signature(composed, training), "cpu")
    assert 0 < len(weighed) <= MOST
    assert len({repr(sorted(chosen.items())) for _, chosen in weighed}) == len(weighed)
    weighed.clear()
    planned(composed, signature(composed, training), "cpu")
    assert not weighed


@pytest.mark.parametrize("name", ["lora", "dora", "deft", "hra", "peanut", "kasa"])
@pytest.mark.parametrize("rows", [256, 2048, 16384])
def test_no_bucket_computes_a_base_product_of_forward_again(name, rows):
    """What is kept is what the bucket of 1,024 tokens keeps; what the others do not find there costs them."""
    n = k = 1024
    composed = stack(((catalogue()[name]().trace(n, k), 0.0),), n, k, True, True)
    wants = tuple(a.role in ("token", "param") for a in composed.arguments)
    found = planned(composed, (("float32",) * len(wants), wants), "cpu", rows)
    gemm = total(found.backward, lambda d: value(d, {TOKENS: rows})).gemm
    assert gemm <= 1.5 * 2 * rows * n * k
