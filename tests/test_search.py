"""The work of a search: for every method, few assignments are weighed, and none again for what is known."""

import pytest

from adaptc.methods import catalogue
from adaptc.plan import search
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
