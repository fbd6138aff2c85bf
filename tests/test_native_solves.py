"""Small linear systems of `csrc/`, and complex sparse products with halves of spectra, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_native import empty_is_nan, every_level, threads

from adaptc.runtime.sampled import sampled, scattered
from adaptc.runtime.solves import solve
from adaptc.runtime.transforms import fft, half_fft, half_ifft, ifft, real_fft, real_ifft

__all__ = ["empty_is_nan", "threads"]

SYSTEMS = [(1, 1, 1), (3, 2, 5), (24, 32, 32), (7, 5, 1), (2, 64, 64), (5, 17, 40), (96, 8, 8), (4, 31, 3)]


def far_from_singular(g, n):
    """Matrices whose largest pivots are not on the diagonal."""
    return (torch.eye(n)[torch.randperm(n)] * 4 + torch.randn(g, n, n) / n**0.5).to(torch.float32)


@every_level
@pytest.mark.parametrize(("g", "n", "q"), SYSTEMS)
def test_solve(level, g, n, q):
    A, B = far_from_singular(g, n), torch.randn(g, n, q)
    exact = torch.linalg.solve(A.double(), B.double())
    plain = (torch.linalg.solve(A, B) - exact).norm()
    found = solve(A, B, level)
    assert found.is_contiguous()
    assert (found - exact).norm() <= 2 * plain + 2 * torch.finfo(torch.float32).eps * exact.norm()
    turned = solve(A.mT.contiguous().mT, B.mT.contiguous().mT, level)
    assert torch.equal(turned, found)
    shared = solve(A[:1].expand(g, n, n), B, level)
    assert torch.equal(shared, torch.cat([solve(A[:1], B[j : j + 1], level) for j in range(g)]))


@every_level
def test_more_axes_and_none(level):
    A, B = far_from_singular(6, 5), torch.randn(6, 5, 3)
    found = solve(A.reshape(2, 3, 5, 5), B.reshape(2, 3, 5, 3), level)
    assert torch.equal(found.reshape(6, 5, 3), solve(A, B, level))
    assert solve(A[0], B[0], level).shape == (5, 3)
    assert solve(A[:0], B[:0], level).shape == (0, 5, 3)


@every_level
def test_what_has_no_inverse_is_refused_and_nan_stays(level):
    A, B = far_from_singular(3, 4), torch.randn(3, 4, 2)
    singular = A.clone()
    singular[1, 2] = 0
    with pytest.raises(torch.linalg.LinAlgError, match="singular"):
        solve(singular, B, level)
    B[2, 0, 1] = float("nan")
    found = solve(A, B, level)
    assert found[:2].isfinite().all()
    assert found[2, :, 0].isfinite().all()
    assert found[2, :, 1].isnan().all()


@every_level
def test_bits_do_not_depend_on_threads_or_on_other_systems(level, threads):
    A, B = far_from_singular(50, 16), torch.randn(50, 16, 16)
    found = []
    for n in (1, 2, 5):
        threads(n)
        found.append(solve(A, B, level))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0][7:8], solve(A[7:8], B[7:8], level))


@st.composite
def spectra(draw):
    """Rows of k, places in k and n columns, and a dtype."""
    k, n, m = (draw(st.integers(1, 40)) for _ in range(3))
    places = draw(st.integers(0, 50))
    cols, rows = torch.randint(k, (places,)), torch.randint(n, (places,))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return torch.randn(m, k, dtype=dtype), cols, torch.randn(places, dtype=dtype), rows, n


def assert_close(found, plain, exact, size):
    """At most twice the error of plain torch in the same dtype, and the rounding of the terms."""
    assert found.shape == exact.shape
    assert found.dtype == plain.dtype
    assert (found - exact).norm() <= 2 * (plain - exact).norm() + 2 * torch.finfo(found.dtype).eps * size


@settings(max_examples=150, deadline=None)
@given(spectra(), st.sampled_from([(fft, half_fft), (ifft, half_ifft)]), st.sampled_from([None, "fft", "ifft"]))
def test_columns_of_spectra_and_of_their_halves(case, transforms, onto):
    x, cols, c, rows, n = case
    forward, half = transforms
    S, terms = (
        torch.zeros(n, x.shape[1], dtype=c.dtype).index_put_((rows, cols), t, accumulate=True) for t in (c, c.abs())
    )

    def product(t, S):
        return forward(t, dim=1) @ S.to(forward(t, dim=1).dtype).T

    plain, exact = product(x, S), product(x.double(), S.double())
    size = (forward(x.double(), dim=1).abs() @ terms.double().T).norm()
    found = scattered(half(x), cols, c, rows, n, plain.dtype, x.shape[1], onto)
    if onto is None:
        assert_close(found, plain, exact, size)
        assert_close(scattered(forward(x, dim=1), cols, c, rows, n, plain.dtype), plain, exact, size)
    else:
        every = scattered(forward(x, dim=1), cols, c, rows, n, plain.dtype, None, onto)
        wanted, back, grown = (fft, real_fft, n**0.5) if onto == "fft" else (ifft, real_ifft, n**-0.5)
        for some in (found, every):
            assert_close(back(some, n), wanted(plain, dim=1).real, wanted(exact, dim=1).real, grown * size)


@settings(max_examples=150, deadline=None)
@given(spectra(), st.booleans(), st.booleans())
def test_sampled_products_of_spectra_and_of_their_halves(case, left, right):
    x, cols, _, rows, n = case
    y = torch.randn(len(x), n, dtype=x.dtype)

    def terms(y, x):
        return fft(y, dim=1)[:, rows] * ifft(x, dim=1)[:, cols].conj()

    exact = terms(y.double(), x.double())
    a = half_fft(y) if left else fft(y, dim=1)
    b = (half_ifft(x) if right else ifft(x, dim=1)).conj()
    found = sampled(a, rows, b, cols, a.dtype, (n if left else None, x.shape[1] if right else None))
    assert_close(found, terms(y, x).sum(0), exact.sum(0), exact.abs().sum(0).norm())


@settings(max_examples=50, deadline=None)
@given(spectra())
def test_a_spectrum_and_what_is_real(case):
    x, cols, _, rows, n = case
    y = torch.randn(len(x), n, dtype=x.dtype)

    def terms(y, x):
        return y[:, rows] * ifft(x, dim=1)[:, cols]

    exact, half = terms(y.double(), x.double()), half_ifft(x)
    found = sampled(y, rows, half, cols, half.dtype, (None, x.shape[1]))
    assert_close(found, terms(y, x).sum(0), exact.sum(0), exact.abs().sum(0).norm())


def test_halves_of_no_tokens():
    x = torch.empty(0, 6)
    assert half_fft(x).shape == half_ifft(x).shape == (0, 4)
    assert real_fft(half_fft(x), 6).shape == real_ifft(half_ifft(x), 6).shape == (0, 6)
