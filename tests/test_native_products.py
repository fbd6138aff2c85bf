"""Products bound by memory, turned copies and scatters of `csrc/`, against float64, on every instruction set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_native import assert_as_exact, empty_is_nan, every_dtype, every_level, threads

from adaptc import _native
from adaptc.errors import ShapeError
from adaptc.runtime import copies, native
from adaptc.runtime.products import Kind, prepare, product
from adaptc.runtime.sampled import scattered

__all__ = ["empty_is_nan", "threads"]

DTYPES = (torch.float32, torch.bfloat16, torch.complex64)
EXTENTS = st.sampled_from([1, 2, 3, 4, 7, 16, 17, 33, 64, 129])
LEVELS = st.sampled_from(range(len(_native.levels())))


def laid(draw, letters, extents, dtype):
    """A tensor whose axes lie in a drawn order, with gaps, from a drawn start."""
    order = draw(st.permutations(range(len(letters))))
    gaps = [draw(st.sampled_from([0, 0, 1, 5])) for _ in letters]
    sizes = [extents[letters[j]] + g for j, g in zip(order, gaps, strict=True)]
    whole = torch.randn(sizes, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    for axis, (j, g) in enumerate(zip(order, gaps, strict=True)):
        whole = whole.narrow(axis, g, extents[letters[j]])
    t = whole.permute([order.index(j) for j in range(len(letters))])
    return t.conj() if dtype.is_complex and draw(st.booleans()) else t


@st.composite
def products(draw):
    """A product of two and its operands: every index in one of them or in both, in the result or summed."""
    letters = "abcd"[: draw(st.integers(1, 4))]
    where = {c: draw(st.sampled_from(["x", "y", "xy", "xy"])) for c in letters}
    where[letters[0]] = "xy"
    extents = {c: draw(EXTENTS) for c in letters}
    while torch.tensor(list(extents.values())).prod() > 40_000:
        extents[max(extents, key=extents.get)] = 3
    terms = ["".join(draw(st.permutations([c for c in letters if side in where[c]]))) for side in "xy"]
    out = "".join(draw(st.permutations([c for c in letters if draw(st.booleans())])))
    dtype = draw(st.sampled_from(DTYPES))
    return f"{terms[0]},{terms[1]}->{out}", [laid(draw, t, extents, dtype) for t in terms], draw(LEVELS)


@settings(max_examples=400, deadline=None)
@given(products())
def test_any_product_of_two(case):
    spec, (a, b), level = case
    found = product(spec, a, b, a.dtype, level=level)
    assert found.dtype == a.dtype
    assert_as_exact(found, spec, a.resolve_conj(), b.resolve_conj())


@every_level
@pytest.mark.parametrize("spec", ["mn,mn->n", "nm,nm->n", "mghi,gihj->mgji", "a,ab->ab", "mi,mj->ij"])
def test_operands_and_result_of_other_dtypes(level, spec):
    sizes = {"m": 150, "n": 37, "g": 3, "h": 2, "i": 19, "j": 5, "a": 4, "b": 70}
    one, two = ([sizes[c] for c in t] for t in spec.split("->")[0].split(","))
    for first in DTYPES[:2]:
        for second in DTYPES[:2]:
            a, b = torch.randn(one).to(first), torch.randn(two).to(second)
            for dtype in DTYPES[:2]:
                found = product(spec, a, b, dtype, 0.5, level)
                exact = 0.5 * torch.einsum(spec, a.double(), b.double())
                plain = 0.5 * torch.einsum(spec, a.float(), b.float()).to(dtype)
                error = 2 * (plain - exact).norm() + 2 * torch.finfo(dtype).eps * exact.norm()
                assert (found - exact).norm() <= error


def test_a_long_sum_loses_no_more_than_torch():
    x = torch.rand(50_000, 3) + 0.5
    for spec, one in (("ma,ma->a", x), ("am,am->a", x.T.contiguous())):
        assert_as_exact(product(spec, one, one, torch.float32), spec, one, one)


def test_every_kind_that_programs_have_goes_along_vectors():
    """Where none does, torch.einsum computes it: right, and slower."""
    x, R = torch.randn(8, 3, 2, 16), torch.randn(3, 16, 2, 2)
    for spec, a, b in (("mgph,ghqp->mgqh", x, R), ("ab,ba->a", torch.randn(9, 12), torch.randn(12, 9))):
        kind = Kind(spec, (tuple(a.shape), tuple(b.shape)), (a.stride(), b.stride()), (torch.float32,) * 3, 1.0)
        assert prepare(kind) is not None


def test_sizes_that_disagree():
    with pytest.raises(ShapeError, match="index b is 3 and 4"):
        product("ab,b->a", torch.randn(2, 3), torch.randn(4), torch.float32)


@st.composite
def turned(draw):
    """A tensor whose axes lie in any order, and a shape of as many entries."""
    extents = [draw(EXTENTS) for _ in range(draw(st.integers(1, 5)))]
    while torch.tensor(extents).prod() > 40_000:
        extents[extents.index(max(extents))] = 2
    letters = "abcde"[: len(extents)]
    t = laid(draw, letters, dict(zip(letters, extents, strict=True)), torch.float32)
    cut = draw(st.integers(0, len(extents)))
    return t, (torch.Size(extents[:cut]).numel(), torch.Size(extents[cut:]).numel()), draw(LEVELS)


@settings(max_examples=300, deadline=None)
@given(turned())
def test_reshape(case):
    t, shape, level = case
    assert torch.equal(copies.reshape(t, shape, level), t.reshape(shape))
    assert copies.reshape(t, shape, level).is_contiguous() or copies.is_view(tuple(t.shape), t.stride(), shape)


@every_level
@every_dtype
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (5, 7, 3), (16, 16, 16), (37, 33, 65), (130, 20, 31)])
def test_scatter(level, dtype, m, n, k):
    x = torch.randn(m, 2 * k).to(dtype)[:, :k]
    for places in (0, 1, 50):
        rows, cols, c = torch.randint(n, (places,)), torch.randint(k, (places,)), torch.randn(places)
        S = torch.zeros(n, k, dtype=torch.float64).index_put_((rows, cols), c.double(), accumulate=True)
        found = native.scattered(x, cols, c, rows, n, level)
        exact = x.double() @ S.T
        size = (x.double().abs() @ S.abs().T).norm()
        plain = scattered(x.double(), cols, c.double(), rows, n, torch.float64)
        assert (plain - exact).norm() <= 1e-12 * (1 + size)
        assert found.dtype == dtype
        assert (found - exact).norm() <= 2 * torch.finfo(dtype).eps * (size + exact.norm())
    with pytest.raises(IndexError, match=f"{n} rows"):
        native.scattered(x, torch.tensor([0]), torch.ones(1), torch.tensor([n]), n, level)


@every_level
def test_bits_do_not_depend_on_threads(level, threads):
    x, y, c = torch.randn(300, 70), torch.randn(300, 70), torch.randn(900)
    rows, cols = torch.randint(70, (900,)), torch.randint(70, (900,))
    found = []
    for n in (1, 2, 5):
        threads(n)
        found.append([
            *(product(spec, x, y, torch.float32, level=level) for spec in ("ab,ab->b", "ab,ab->a", "ab,ab->ab")),
            native.sampled(x, rows, y, cols, level), native.scattered(x, cols, c, rows, 70, level),
            copies.reshape(x.T, (21_000,), level),
        ])  # fmt: skip
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
