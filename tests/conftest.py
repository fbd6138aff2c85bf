"""One core, checks between stages, and the same draws in every run."""

import os

os.environ["ADAPTC_VERIFY"] = "1"  # before adaptc reads it
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TRITON_INTERPRET"] = "1"  # generated kernels run on the CPU; `aot.py` compiles them in another process

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("adaptc", derandomize=True, deadline=None, max_examples=40)
hypothesis.settings.load_profile("adaptc")


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws from the same start."""
    torch.manual_seed(0)


@pytest.fixture
def at_any_price(monkeypatch):
    """Sibling layers go together where no gain is predicted, too."""
    from adaptc.runtime import siblings

    siblings.joint.cache_clear()
    monkeypatch.setattr(siblings, "pays", lambda *_: True)
    yield
    siblings.joint.cache_clear()
