"""Two adapters on one layer: the forward is the merged forward, for every ordered pair of ten unlike methods."""

import itertools

import pytest

from adaptc.case import Case
from adaptc.laws import pair
from adaptc.methods import boft, dora, fourierft, hra, ia3, loha, lokr, oft, road, vera

TEN = {
    "dora": dora(r=4),
    "hra": hra(r=4),
    "oft": oft(b=32),
    "boft": boft(b=4),
    "ia3": ia3(),
    "loha": loha(r=4),
    "lokr": lokr(r=4),
    "vera": vera(r=16),
    "fourierft": fourierft(m=50),
    "road": road(g=8),
}


@pytest.mark.parametrize(("first", "second"), list(itertools.product(TEN, TEN)))
def test_forward_is_merged_forward(first, second):
    pair(Case(TEN[first], 96, 64), TEN[first], TEN[second])
