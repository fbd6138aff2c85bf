"""As test_method_formulas.py, for the methods whose source is PEFT: formulas written anew, in float64, to 1e-10."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from test_method_formulas import SHAPES, attached, cayley, svd
from torch import Tensor

from adaptc.case import move


def agrees(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= 1e-10 * wanted.norm()


def bd_a(W, leaf, _):
    g, p, q = leaf.A.shape
    out = W.clone()
    for i in range(g):
        out[:, i * q : (i + 1) * q] += 1.5 * leaf.B[:, i * p : (i + 1) * p] @ leaf.A[i]
    return out


def bd_b(W, leaf, _):
    g, q, p = leaf.B.shape
    out = W.clone()
    for i in range(g):
        out[i * q : (i + 1) * q] += 1.5 * leaf.B[i] @ leaf.A[i * p : (i + 1) * p]
    return out


def delora(W, leaf, _):
    out = W.clone()
    for i in range(4):
        a, b = leaf.A[i], leaf.B[:, i]
        out += leaf.lam / 4 * torch.outer(b / max(b.norm(), 1e-4), a / max(a.norm(), 1e-4)) * (W**2).sum(0).sqrt()
    return out


def gralora(W, leaf, _):
    rows = [torch.cat([leaf.B[i, j] @ leaf.A[i, j] for j in range(2)], dim=1) for i in range(2)]
    return W + 1.5 * torch.cat(rows)


def deft(W, leaf, _):
    return W - leaf.P @ leaf.P.clamp(min=0).T @ W + 1.5 * leaf.P @ leaf.R


def deft_qr(W, leaf, _):
    Q, R = torch.linalg.qr(leaf.P)
    Q = Q * R.diagonal().sign()
    return (torch.eye(len(W), dtype=W.dtype) - Q @ Q.T) @ W + Q @ leaf.R


def glora(W, leaf, _):
    return W + torch.einsum("nk,nr,rk->nk", W, leaf.Ad, leaf.Au) + leaf.Bd @ leaf.Bu


def miss_bat(W, leaf, _):
    out, r = W.clone(), leaf.D.shape[1]
    for i, j in itertools.product(range(W.shape[0] // r), range(W.shape[1] // r)):
        at = slice(i * r, i * r + r), slice(j * r, j * r + r)
        out[at] = W[at] + W[at] @ leaf.D[i] + leaf.D[i]
    return out


def peanut(W, leaf, _):
    """On the columns of W, as rows."""
    h = first = torch.relu(W.T @ leaf.A.T)
    second = torch.relu(first @ leaf.E0.T)
    h = torch.relu(second @ leaf.E1.T)
    h = torch.relu(h @ leaf.D0.T) + second
    h = torch.relu(h @ leaf.D1.T) + first
    return W + 0.5 * (h @ leaf.B.T).T


def supertuning(W, leaf, _):
    out, values = W.clone().flatten(), iter(leaf.v)
    for place in sorted(W.abs().flatten().argsort(descending=True)[: len(leaf.v)].tolist()):
        out[place] += next(values)
    return out.view_as(W)


def psoft(W, leaf, _):
    U, S, Vt = svd(W, 4)
    Q, values = torch.zeros(4, 4, dtype=W.dtype), iter(leaf.q)
    for i, j in itertools.combinations(range(4), 2):
        Q[i, j] = next(values)
        Q[j, i] = -Q[i, j]
    eye = torch.eye(4, dtype=W.dtype)
    R = (eye + Q) @ torch.linalg.inv(eye - Q)
    agrees(R, cayley(-Q))
    return W + U @ torch.diag(S) @ (leaf.b[:, None] * R * leaf.a - eye) @ Vt


def vblora(W, leaf, _):
    def matrix(L):
        rows = []
        for r in range(L.shape[1]):
            pieces = []
            for t in range(L.shape[0]):
                best = L[t, r].argsort(descending=True)[:2]
                pieces.append(torch.softmax(L[t, r, best], 0) @ leaf.bank[best])
            rows.append(torch.cat(pieces))
        return torch.stack(rows)

    return W + matrix(leaf.LB).T @ matrix(leaf.LA)


def unilora(W, leaf, _):
    n, k = W.shape
    at = leaf.at % 10
    count = torch.bincount(at, minlength=10)
    assert count.max() - count.min() <= 1
    entries = torch.stack([leaf.z[i] / math.sqrt(3 * count[i]) for i in at.tolist()])
    A, B = entries[: 4 * k].view(4, k), entries[4 * k :].view(n, 4)
    return W + B @ A


def tinylora(W, leaf, _):
    U, S, Vt = svd(W, 2)
    R = sum(leaf.v[i] * leaf.P[i] for i in range(5))
    return W + U @ torch.diag(S.sqrt()) @ R @ torch.diag(S.sqrt()) @ Vt


def waveft(W, leaf, _):
    """One level of the inverse Haar transform, two by two entries at a time."""
    (n, k), S = W.shape, torch.zeros(W.numel(), dtype=W.dtype)
    S[leaf.at] = leaf.c
    out, (a, d) = W.clone(), (n // 2, k // 2)
    S = S.view(n, k)
    for i, j in itertools.product(range(a), range(d)):
        bands = [[S[i, j], S[i, j + d]], [S[i + a, j], S[i + a, j + d]]]
        for p, q in itertools.product(range(2), repeat=2):
            terms = [(-1) ** (p * u + q * v) * bands[u][v] / 2 for u, v in itertools.product(range(2), repeat=2)]
            out[2 * i + p, 2 * j + q] += 3 * sum(terms)
    return out


def osf(W, leaf, _):
    U, S, Vt = svd(W, 3)
    return U @ torch.diag(S) @ Vt + leaf.U @ torch.diag(leaf.S) @ leaf.V


def frod(W, leaf, start):
    k, V = W.shape[1], leaf.V
    M = torch.diag(leaf.l)
    places = [(i, j) for i, j in itertools.product(range(k), repeat=2) if i != j]
    for at, s in zip(leaf.at.tolist(), leaf.s, strict=True):
        M[places[at]] += s
    C = W @ torch.linalg.inv(V).T
    U = torch.stack([C[:, j] / max(start.l[j], 1e-12) for j in range(k)], dim=1)
    return U @ M @ V.T


def adamss(W, leaf, _):
    U, S, Vt = svd(W, 6)
    out = W.clone()
    for o, c in enumerate(leaf.at.tolist()):
        out[o] += leaf.B[o] @ leaf.A[2 * c : 2 * c + 2] @ Vt
    return out


FORMULAS = {
    "lora_bd": (bd_a, {"r": 4, "alpha": 6.0, "blocks": 2}),
    "lora_bd of B": (bd_b, {"r": 4, "alpha": 6.0, "blocks": 2, "diagonal": "B"}),
    "delora": (delora, {"r": 4}),
    "gralora": (gralora, {"r": 4, "alpha": 6.0}),
    "deft": (deft, {"r": 4, "alpha": 6.0}),
    "deft of qr": (deft_qr, {"r": 4, "decomposition": "qr"}),
    "glora": (glora, {"r": 4}),
    "miss_bat": (miss_bat, {"r": 4}),
    "peanut": (peanut, {"r": 4, "depth": 2, "s": 0.5}),
    "supertuning": (supertuning, {"density": 0.1}),
    "psoft": (psoft, {"r": 4}),
    "vblora": (vblora, {"r": 3, "vectors": 7, "length": 4}),
    "unilora": (unilora, {"d": 10, "layers": 3}),
    "tinylora": (tinylora, {"u": 5}),
    "waveft": (waveft, {"n_frequency": 40, "alpha": 3.0}),
    "osf": (osf, {"rank": 3}),
    "frod": (frod, {"sparse_rate": 0.1}),
    "adamss": (adamss, {"r": 6, "subspaces": 3, "rank": 2}),
}


def moved(title: str, n: int, k: int, hyper: dict):
    """A layer whose leaves have moved, the leaves, and the leaves at the start."""
    layer, start = attached(title.split(" ")[0], n, k, **hyper)
    move(layer, 0)
    return layer, SimpleNamespace(**{leaf: t.detach() for leaf, t in layer.leaves().items()}), start


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("title", FORMULAS)
def test_the_formula_gives_the_adapted_weight(title, n, k):
    formula, hyper = FORMULAS[title]
    layer, leaves, start = moved(title, n, k, hyper)
    agrees(layer.adapted_weight().detach(), formula(layer.weight.detach(), leaves, start))


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_bias_of_glora(n, k):
    layer, leaf, _ = moved("glora", n, k, {"r": 4})
    agrees(
        layer.adapted_bias(),
        layer.bias * (1 + leaf.D) + leaf.E + layer.weight @ (leaf.Cd @ leaf.Cu).squeeze(1),
    )


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_gradients_of_osf_are_orthogonal_to_the_frozen_vectors(n, k):
    layer, leaf, _ = moved("osf", n, k, {"rank": 3})
    U, S, Vt = svd(layer.weight, 3)
    dW = torch.randn(n, k, dtype=torch.float64)
    x = torch.eye(k, dtype=torch.float64)
    grads = dict(zip("USV", torch.autograd.grad(layer(x), [layer.leaves()[v] for v in "USV"], dW.T), strict=True))
    dU, dV = dW @ leaf.V.T * leaf.S, leaf.S[:, None] * (leaf.U.T @ dW)
    agrees(grads["U"], dU - U @ U.T @ dU)
    agrees(grads["V"], dV - dV @ Vt.T @ Vt)
    agrees(grads["S"], torch.einsum("ni,nk,ik->i", leaf.U, dW, leaf.V))


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_starts(n, k):
    layer, start = attached("deft", n, k, r=4, alpha=6.0)
    agrees(start.R, start.P.clamp(min=0).T @ layer.weight / 1.5)
    layer, start = attached("adamss", n, k, r=6, subspaces=3, rank=1)
    U: Tensor = svd(layer.weight, 6)[0]
    for c in range(3):
        rows = U[start.at == c]
        agrees(torch.outer(start.A[c], start.A[c]), (v := torch.linalg.svd(rows)[2][:1]).T @ v)
    layer, start = attached("frod", n, k)
    agrees(start.V @ start.V.T, torch.eye(k, dtype=torch.float64))
    layer, start = attached("osf", n, k)
    agrees(start.S, torch.linalg.svdvals(layer.weight)[min(n, k) // 2 :])
