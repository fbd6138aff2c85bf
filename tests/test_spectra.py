"""Sparse matrices between transforms, on one side of them and on both: what is computed of half a spectrum is right,
and what is none is left whole."""

import pytest

import adaptc as ac

AROUND = {
    "ifft S": lambda S, n, k: ac.idft(n) @ S,
    "fft S": lambda S, n, k: ac.dft(n) @ S,
    "S ifft": lambda S, n, k: S @ ac.idft(k),
    "S fft": lambda S, n, k: S @ ac.dft(k),
    "ifft S ifft": lambda S, n, k: ac.idft(n) @ S @ ac.idft(k),
    "fft S ifft": lambda S, n, k: ac.dft(n) @ S @ ac.idft(k),
    "ifft S fft": lambda S, n, k: ac.idft(n) @ S @ ac.dft(k),
    "fft S fft": lambda S, n, k: ac.dft(n) @ S @ ac.dft(k),
}


@ac.adapter(identity=False)
def between(W, *, where, m=30):
    """Real part of a sparse matrix between transforms."""
    n, k = W.shape
    c = ac.param("c", (m,), "ones")
    at = ac.frozen("at", (m,), ac.randperm(n * k), seed=3, store=False)
    return W + ac.real(AROUND[where](ac.scatter(c, [at // k, at % k], (n, k)), n, k))


@pytest.mark.parametrize("where", AROUND)
@pytest.mark.parametrize(("n", "k"), [(16, 24), (37, 29), (24, 1)])
def test_every_law_holds(where, n, k):
    assert ac.verify(between(where=where, m=min(30, n * k)), n, k)
