"""Formulas written anew in torch, without the compiler, against the adapted weight of a layer whose leaves have moved.

Everything is float64 and agrees to 1e-9 relative. Each function takes W, the leaves, and the leaves as they were at the
start.
"""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import adaptc as ac
from adaptc.case import move
from adaptc.methods import catalogue

SHAPES = [(24, 16), (12, 48)]
RELATIVE = 1e-9


def svd(W: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """The r largest triples; the entry of largest magnitude in each column of U is positive."""
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    signs = torch.stack([column[column.abs().argmax()].sign() for column in U.T])
    return (U * signs)[:, :r], S[:r], (Vt * signs[:, None])[:r]


def cayley(X: Tensor) -> Tensor:
    S, eye = (X - X.T) / 2, torch.eye(len(X), dtype=X.dtype)
    return (eye - S) @ torch.linalg.inv(eye + S)


def outer(u: Tensor) -> Tensor:
    """The projection on u."""
    return torch.outer(u, u) / u.dot(u)


def dora(W: Tensor, V: Tensor, m: Tensor) -> Tensor:
    return torch.stack([m[i] * V[i] / V[i].norm() for i in range(len(W))])


def lora(W, leaf, _):
    return W + 1.5 * torch.einsum("nr,rk->nk", leaf.B, leaf.A)


def slora(W, leaf, _):
    return W + 1.5 * torch.einsum("nr,rs,sk->nk", leaf.B, leaf.N, leaf.A)


def adalora(W, leaf, _):
    return W + 6 / (4 + 1e-5) * sum(leaf.e[i] * torch.outer(leaf.B[:, i], leaf.A[i]) for i in range(4))


def triadaptlora(W, leaf, _):
    C = torch.zeros_like(leaf.L)
    for i, j in itertools.product(range(4), repeat=2):
        C[i, j] = (leaf.L[i, j] if j <= i else 0) + (leaf.U[i, j] if j >= i else 0)
    return W + 6 / (4 + 1e-5) * leaf.B @ C @ leaf.A


def capaboost(W, leaf, _):
    assert {*leaf.P.unique().tolist(), *leaf.Q.unique().tolist()} == {0, 1}
    return W + 1.5 * torch.einsum("inr,nr,irk,rk->nk", leaf.P, leaf.B, leaf.Q, leaf.A)


def melora(W, leaf, _):
    n, k = W.shape[0] // 2, W.shape[1] // 2
    out = W.clone()
    out[:n, :k] += 6 / 1 * leaf.B0 @ leaf.A0
    out[n:, k:] += 6 / 3 * leaf.B1 @ leaf.A1
    return out


def started(W, leaf, start):
    """PiSSA's and OLoRA's form."""
    return W + 1.5 * (leaf.B @ leaf.A - start.B @ start.A)


def kasa(W, leaf, _):
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    p = len(S) - 4
    return (U[:, :p] * S[:p]) @ Vt[:p] + 1.5 * (leaf.B * leaf.d) @ leaf.A


def lora_xs(W, leaf, _):
    U, S, Vt = svd(W, 4)
    return W + 1.5 * U @ leaf.R @ (S[:, None] * Vt)


def edora(W, leaf, _):
    return dora(W, lora_xs(W, leaf, _), leaf.m)


def curlora(W, leaf, _):
    C = torch.stack([W[:, j] for j in leaf.cols.tolist()], dim=1)
    R = torch.stack([W[i] for i in leaf.rows.tolist()])
    return W + 2 * C @ leaf.M @ R


def loldu(W, leaf, start):
    P, L, U = torch.linalg.lu(W)
    D = U.diagonal()[:4]
    assert torch.allclose(start.z, D, rtol=RELATIVE)
    E = [P @ L[:, :4] @ torch.diag(z) @ (U[:4] / D[:, None]) for z in (leaf.z, D)]
    return W + leaf.s * E[0] - 1.5 * E[1]


def svft(W, leaf, _):
    U, S, Vt = svd(W, min(W.shape))
    M, values = torch.zeros(len(S), len(S), dtype=W.dtype), iter(leaf.M)
    for i, j in itertools.product(range(len(S)), repeat=2):
        if abs(i - j) <= 2:
            M[i, j] = next(values)
    assert next(values, None) is None
    return U @ (torch.diag(S) + M) @ Vt


def svfit(W, leaf, _):
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    return U @ torch.diag(torch.cat([leaf.s, S[4:]])) @ Vt


def spectral_a(W, leaf, _):
    U, S, Vt = svd(W, min(W.shape))
    U[:, 1:5] += leaf.du
    Vt[1:5] += leaf.dv
    return U @ torch.diag(S) @ Vt


def spectral_r(W, leaf, _):
    U, S, Vt = svd(W, min(W.shape))
    U[:, :4] = U[:, :4] @ cayley(leaf.X)
    Vt[:4] = cayley(leaf.Y).T @ Vt[:4]
    S[:4] *= leaf.c
    return U @ torch.diag(S) @ Vt


def tied_lora(W, leaf, _):
    return W + torch.einsum("n,nr,r,rk->nk", leaf.v, leaf.B, leaf.u, leaf.A)


def s2_lora(W, leaf, _):
    return W + sum(leaf.c[i] * torch.outer(leaf.B[:, i], leaf.A[i]) for i in range(4))


def nola(W, leaf, _):
    A = leaf.A0 + sum(leaf.a[j] * leaf.P[j] for j in range(5)) / math.sqrt(5)
    B = sum(leaf.b[j] * leaf.Q[j] for j in range(5)) / math.sqrt(5)
    return W + 1.5 * B @ A


def randlora(W, leaf, _):
    count = math.ceil(min(W.shape) / 5)
    E = sum(leaf.B[:, j] @ torch.diag(leaf.l[:, j]) @ leaf.A @ torch.diag(leaf.g[j]) for j in range(count))
    return W + 6 / 5 * (E if W.shape[0] >= W.shape[1] else E.T)


def said(W, leaf, _):
    N = len(leaf.G)
    H = torch.ones(1, 1, dtype=W.dtype)
    while len(H) < N:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    x = torch.zeros(N, dtype=W.dtype)
    x[:10] = leaf.z * (2 * leaf.B - 1)
    x = H @ (leaf.G * (H @ x)[leaf.P])
    divisor = torch.sqrt(N * (leaf.G**2).sum()) * math.sqrt(W.numel() / N)
    return W + leaf.lam * (x[: W.numel()] / divisor).view_as(W)


def diffusekrona(W, leaf, _):
    out, (b1, b2) = W.clone(), leaf.B.shape
    for i, j in itertools.product(range(4), range(2)):
        out[i * b1 : (i + 1) * b1, j * b2 : (j + 1) * b2] += leaf.A[i, j] * leaf.B
    return out


def sum_of_krons(W, leaf, _):
    return W + torch.einsum("iab,icr,ird->acbd", leaf.A, leaf.s, leaf.t).reshape(W.shape)


def quanta(W, leaf, start):
    def matrix(leaves, dims=(2, 5, 5)):
        """The gates of the last axes act first, on a basis in the last axis."""
        x = torch.eye(50, dtype=W.dtype).view(*dims, 50)
        for a, b in ((2, 1), (2, 0), (1, 0)):
            gate = getattr(leaves, f"T{b}{a}").view(dims[b], dims[a], dims[b], dims[a])
            x = torch.tensordot(gate, x, dims=([2, 3], [b, a])).movedim((0, 1), (b, a))
        return x.reshape(50, 50)[: W.shape[0], : W.shape[1]]

    return W + matrix(leaf) - matrix(start)


def loretta(W, leaf, _):
    def train(name, sizes):
        cores = [getattr(leaf, f"{name}{i}").squeeze(2) for i in range(3)]
        return torch.einsum("zap,pbq,qcy->abc", *cores).reshape(sizes)

    return W + 1.5 * (train("A", (W.shape[1], 4)) @ train("B", (4, W.shape[0]))).T


def by_entry(entry):
    """W plus an entry for each place."""

    def formula(W, leaf, _):
        places = itertools.product(*map(range, W.shape))
        return W + torch.stack([entry(leaf, i, j, W.shape) for i, j in places]).view_as(W)

    return formula


def mora_q(n, k):
    return int(math.sqrt((n + k) * 2) + 0.5)


def mora(W, leaf, _):
    """On each unit input: padded with its own start, summed in groups of q, the outputs repeated."""
    (n, k), q = W.shape, mora_q(*W.shape)
    x = torch.eye(k, dtype=W.dtype)
    x = torch.cat([x, x[:, : -k % q]], dim=1).view(k, -1, q).sum(1) @ leaf.M.T
    return W + x.repeat(1, -(-n // q))[:, :n].T


def mora6(W, leaf, _):
    """Every group turned by a rotary embedding of its number, M on each."""
    (n, k), q = W.shape, mora_q(*W.shape) // 2 * 2
    x = torch.eye(k, dtype=W.dtype)
    x = torch.cat([x, x[:, : -k % q]], dim=1).view(k, -1, q)
    angle = torch.arange(x.shape[1])[:, None] * 10000 ** (-torch.arange(0, q, 2, dtype=W.dtype) / q)
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
    x = x * cos + torch.cat([-x[..., q // 2 :], x[..., : q // 2]], dim=-1) * sin
    y = (x @ leaf.M.T).reshape(k, -1)
    return W + y.repeat(1, -(-n // y.shape[1]))[:, :n].T


def ether(W, leaf, _):
    u, b = leaf.u.reshape(2, -1), W.shape[1] // 2
    blocks = [torch.eye(b, dtype=W.dtype) - 2 * outer(u[g]) for g in range(2)]
    return torch.cat([W[:, g * b : (g + 1) * b] @ blocks[g] for g in range(2)], dim=1)


def ether_plus(W, leaf, _):
    sides = [(leaf.u0.reshape(2, -1), leaf.v0.reshape(2, -1)), (leaf.u1.reshape(2, -1), leaf.v1.reshape(2, -1))]
    H = [torch.block_diag(*(outer(v[g]) - outer(u[g]) for g in range(2))) for u, v in sides]
    H = [h + torch.eye(len(h), dtype=W.dtype) for h in H]
    return H[0] @ W @ H[1]


def givens(W, leaf, _):
    k, R = W.shape[1], torch.eye(W.shape[1], dtype=W.dtype)
    for r in range((k - 1).bit_length()):
        for t, i in enumerate(range(0, k - 2**r, 2 ** (r + 1))):
            theta, plane = math.pi * math.tanh(getattr(leaf, f"t{2**r}")[t]), torch.eye(k, dtype=W.dtype)
            j = i + 2**r
            plane[i, i] = plane[j, j] = math.cos(theta)
            plane[j, i], plane[i, j] = math.sin(theta), -math.sin(theta)
            R = R @ plane
    return (R @ W.T).T * leaf.c


FORMULAS = {
    "lora_fa": (lora, {"r": 4, "alpha": 6.0}),
    "lora_asym": (lora, {"r": 4, "alpha": 6.0}),
    "slora": (slora, {"r": 4, "alpha": 6.0}),
    "adalora": (adalora, {"r": 4, "alpha": 6.0}),
    "triadaptlora": (triadaptlora, {"r": 4, "alpha": 6.0}),
    "capaboost": (capaboost, {"r": 4, "alpha": 6.0, "d": 3}),
    "melora": (melora, {"ranks": (1, 3), "alpha": 6.0}),
    "olora": (started, {"r": 4, "alpha": 6.0}),
    "kasa": (kasa, {"r": 4, "alpha": 6.0}),
    "nlora": (slora, {"r": 4, "alpha": 6.0}),
    "lora_xs": (lora_xs, {"r": 4, "alpha": 6.0}),
    "edora": (edora, {"r": 4, "alpha": 6.0}),
    "curlora": (curlora, {"c": 3, "alpha": 2.0}),
    "loldu": (loldu, {"r": 4, "alpha": 6.0}),
    "svft": (svft, {"d": 2}),
    "svfit": (svfit, {"r": 4}),
    "spectral_a": (spectral_a, {"r": 4, "at": 1}),
    "spectral_r": (spectral_r, {"r": 4}),
    "tied_lora": (tied_lora, {"r": 4}),
    "s2_lora": (s2_lora, {"r": 4}),
    "nola": (nola, {"r": 4, "m": 5, "alpha": 6.0}),
    "randlora": (randlora, {"r": 5, "alpha": 6.0}),
    "said": (said, {"d": 10}),
    "diffusekrona": (diffusekrona, {"a1": 4, "a2": 2}),
    "sum_of_krons": (sum_of_krons, {"q": 4, "r": 2}),
    "quanta": (quanta, {"dims": (2, 5, 5)}),
    "loretta": (loretta, {"r": 4, "rank": 3, "alpha": 6.0}),
    "surm_circulant": (by_entry(lambda leaf, i, j, shape: leaf.c[(i - j) % max(shape)]), {}),
    "surm_toeplitz": (by_entry(lambda leaf, i, j, shape: leaf.t[i - j + shape[1] - 1]), {}),
    "miss": (by_entry(lambda leaf, i, j, _: leaf.D[j % 5, i]), {"r": 5}),
    "mora": (mora, {"r": 2}),
    "mora6": (mora6, {"r": 2}),
    "ether": (ether, {"g": 2}),
    "ether_plus": (ether_plus, {"g": 2}),
    "givens": (givens, {}),
    "hira": (lambda W, leaf, _: torch.einsum("nk,nr,rk->nk", W, leaf.B, leaf.A) + W, {"r": 4}),
    "scalelora": (lambda W, leaf, _: torch.einsum("nk,nr,rk->nk", W, leaf.B, leaf.A), {"r": 4}),
    "ssf": (lambda W, leaf, _: leaf.g[:, None] * W, {}),
    "beft": (lambda W, leaf, _: W, {}),
}


def attached(name: str, n: int, k: int, **hyper) -> tuple[ac.AdaptedLinear, SimpleNamespace]:
    """A layer in float64 and copies of its leaves."""
    base = nn.Linear(k, n, dtype=torch.float64).requires_grad_(False)
    layer = ac.AdaptedLinear(base, catalogue()[name](**hyper))
    return layer, SimpleNamespace(**{leaf: t.detach().clone() for leaf, t in layer.leaves().items()})


def agrees(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= RELATIVE * wanted.norm()


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("name", FORMULAS)
def test_the_formula_gives_the_adapted_weight(name, n, k):
    formula, hyper = FORMULAS[name]
    layer, start = attached(name, n, k, **hyper)
    move(layer, 0)
    leaves = SimpleNamespace(**{leaf: t.detach() for leaf, t in layer.leaves().items()})
    agrees(layer.adapted_weight().detach(), formula(layer.weight.detach(), leaves, start))


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_bias_of_ssf_and_beft(n, k):
    layer, _ = attached("ssf", n, k)
    move(layer, 0)
    leaves = layer.leaves()
    agrees(layer.adapted_bias(), leaves["g"] * layer.bias + leaves["t"])
    layer, _ = attached("beft", n, k)
    move(layer, 0)
    agrees(layer.adapted_bias(), layer.bias + layer.leaves()["c"])


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_leaves_start_from_factors_of_the_weight(n, k):
    layer, start = attached("olora", n, k, r=4)
    Q, R = torch.linalg.qr(layer.weight)
    agrees(start.B, Q[:, :4])
    agrees(start.A, R[:4])
    layer, start = attached("nlora", n, k, r=4)
    for leaf, wanted in (("A", layer.weight[:4]), ("B", layer.weight[:, :4]), ("N", layer.weight[:4, :4])):
        agrees(getattr(start, leaf), wanted)
    layer, start = attached("edora", n, k, r=4)
    agrees(start.m, (layer.weight**2).sum(1).sqrt())
    layer, start = attached("svfit", n, k, r=4)
    agrees(start.s, torch.linalg.svdvals(layer.weight)[:4])
    layer, start = attached("loldu", n, k, r=4, alpha=6.0)
    agrees(start.z, torch.linalg.lu(layer.weight)[2].diagonal()[:4])
    agrees(start.s, torch.tensor(1.5, dtype=torch.float64))


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_seeded_leaves_draw_in_the_order_written(n, k):
    generator = torch.Generator().manual_seed(3)
    _, start = attached("nola", n, k, r=4, m=5, seed=3)
    bound = math.sqrt(6 / (6 * k))
    assert torch.equal(start.A0, torch.empty(4, k).uniform_(-bound, bound, generator=generator).double())
    assert torch.equal(start.P, torch.empty(5, 4, k).uniform_(-1, 1, generator=generator).double())
    assert torch.equal(start.Q, torch.empty(5, n, 4).uniform_(-1, 1, generator=generator).double())
    generator = torch.Generator().manual_seed(3)
    _, start = attached("randlora", n, k, r=5, seed=3)
    bound, count = 3**0.5, math.ceil(min(n, k) / 5)
    assert torch.equal(start.A, torch.empty(5, min(n, k)).uniform_(-bound, bound, generator=generator).double())
    B = torch.empty(max(n, k), count, 5).uniform_(-bound, bound, generator=generator)
    assert torch.equal(start.B, B.double())


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_small_columns_and_rows_are_likely_in_curlora(n, k):
    layer, start = attached("curlora", n, k, c=7, seed=3)
    generator, energy = torch.Generator().manual_seed(3), layer.weight**2 / (layer.weight**2).sum()
    for leaf, axis in (("cols", 0), ("rows", 1)):
        weights = 1 / (energy.sum(axis) + 0.001)
        drawn = torch.multinomial(weights, 7, replacement=True, generator=generator)
        assert torch.equal(getattr(start, leaf), drawn)


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_lora_asym_has_orthonormal_rows(n, k):
    _, start = attached("lora_asym", n, k, r=4)
    identity = torch.eye(4, dtype=torch.float64)
    assert (start.A @ start.A.T - identity).norm() < 8 * torch.finfo(torch.float32).eps  # drawn in float32


@pytest.fixture
def given_is_a_leaf(monkeypatch):
    """What calibration would give is drawn and held as a frozen leaf of that name."""

    def given(name, shape, **_):
        return ac.frozen(name, shape, ac.normal(1.0))

    monkeypatch.setattr(ac, "given", given, raising=False)


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_corda_starts_from_the_weight_times_the_second_moment(given_is_a_leaf, n, k):
    layer, start = attached("corda", n, k, r=4, alpha=6.0, damp=0.02)
    C = start.second_moment
    C = C + 0.02 * C.diagonal().mean() * torch.eye(k, dtype=C.dtype)
    U, S, Vt = svd(layer.weight @ C, 4)
    agrees(start.A, (S / 1.5).sqrt()[:, None] * Vt @ torch.linalg.inv(C))
    agrees(start.B, U * (S / 1.5).sqrt())
    move(layer, 0)
    now = layer.leaves()
    agrees(layer.adapted_weight(), layer.weight + 1.5 * (now["B"] @ now["A"] - start.B @ start.A))


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_lora_sb_starts_at_the_first_step(given_is_a_leaf, n, k):
    layer, start = attached("lora_sb", n, k, r=4, alpha=6.0, lr=0.01)
    U, S, Vt = svd(-0.01 * start.gradient.sign(), 4)
    agrees(start.R, torch.diag(S))
    move(layer, 0)
    agrees(layer.adapted_weight(), layer.weight + 1.5 * U @ layer.leaves()["R"] @ Vt)
