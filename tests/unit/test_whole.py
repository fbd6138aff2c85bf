"""Whole-number arithmetic on integer leaves, and what it refuses."""

import pytest
import torch
from torch import nn

import adaptc as ac
from adaptc.errors import AdaptcError


@ac.adapter
def off_diagonal(W, *, count=5, seed=0):
    """Places off the diagonal of a square matrix, by arithmetic on a permutation."""
    n, k = W.shape
    at = ac.frozen("at", (count,), ac.randperm(k * (k - 1)), seed=seed, store=False)
    places = at + at // k + 1
    S = ac.scatter(ac.param("s", (count,), "zeros"), [places // k, places % k], (k, k))
    return W @ (S + ac.identity(k))


@torch.no_grad()
def test_places_are_what_python_computes():
    layer = ac.AdaptedLinear(nn.Linear(6, 4, dtype=torch.float64), off_diagonal())
    layer.leaves()["s"].fill_(1.0)
    at = layer.leaves()["at"]
    places = at + at // 6 + 1
    S = torch.eye(6, dtype=torch.float64)
    S[places // 6, places % 6] += 1.0
    assert S.diagonal().sum() == 6
    assert S.sum() == 6 + 5
    torch.testing.assert_close(layer.adapted_weight(), layer.weight @ S)


@pytest.mark.parametrize("wrong", [lambda W, at: W // 2, lambda W, at: at // 0, lambda W, at: at % 2.5])
def test_what_is_no_whole_number_is_refused(wrong):
    @ac.adapter
    def method(W):
        at = ac.frozen("at", (3,), ac.randperm(4), seed=0, store=False)
        return W + wrong(W, at)

    with pytest.raises(AdaptcError, match="whole numbers and a number b > 0"):
        method().trace(4, 4)


def test_the_method_keeps_its_contract():
    ac.verify(off_diagonal(), 4, 6)
