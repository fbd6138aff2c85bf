"""Few trained numbers between frozen factors of W: singular vectors, LU, columns and rows of W."""

from functools import partial
from zlib import crc32

import adaptc as ac


@ac.adapter(identity=False)
def lora_xs(W, *, r=8, alpha=16.0, sigma=1e-5):
    """LoRA-XS: W' = W + (alpha / r) U R diag(S) V^T, U S V^T the r largest singular triples of W, only R trained.

    Source: arXiv:2405.17604, checked against the authors' code, not the paper's text: R from N(0, sigma^2), all
    singular values on the side of the inputs.
    """
    U, S, Vt = ac.svd(W, r)
    R = ac.param("R", (r, r), ac.normal(sigma))
    return W + (alpha / r) * (U @ R @ ac.diag(S) @ Vt)


@ac.adapter(identity=False)
def edora(W, *, r=8, alpha=16.0, sigma=1e-5):
    """EDoRA: DoRA on LoRA-XS, W' = diag(m / |V|) V with V = W + (alpha / r) U R diag(S) Z^T, U S Z^T = svd(W).

    Source: arXiv:2501.12067, checked against the authors' code, not the paper's text: R and m are trained, the norms
    of V's rows are not differentiated.
    """
    U, S, Zt = ac.svd(W, r)
    R = ac.param("R", (r, r), ac.normal(sigma))
    V = W + (alpha / r) * (U @ R @ ac.diag(S) @ Zt)
    m = ac.param("m", (W.shape[0],), ac.norm(W, axis=1))
    return ac.diag(m / ac.detach(ac.norm(V, axis=1))) @ V


def _rare(W, generator, axis, count):
    """Indices of `count` columns (axis 0) or rows of W, drawn with replacement, the small ones more often."""
    p = 1 / (W.norm(dim=axis) ** 2 / W.norm() ** 2 + 1e-3)
    return p.cpu().multinomial(count, replacement=True, generator=generator)


@ac.adapter
def curlora(W, *, c=8, alpha=1.0, seed=0):
    """CURLoRA: W' = W + alpha C M R, C and R columns and rows of W, drawn so that small ones are likely.

    Column j has the probability p_j ~ 1 / (|W_j|^2 / |W|^2 + 0.001), with replacement; M (c, c) is trained from zero.
    Source: arXiv:2408.14572, checked against the authors' code, not the paper's text.
    """
    cols = ac.frozen("cols", (c,), partial(_rare, axis=0, count=c), seed=seed, dtype="int64")
    rows = ac.frozen("rows", (c,), partial(_rare, axis=1, count=c), seed=seed, dtype="int64")
    M = ac.param("M", (c, c), "zeros")
    return W + alpha * (ac.take(W, cols, axis=1) @ M @ ac.take(W, rows, axis=0))


@ac.adapter
def loldu(W, *, r=8, alpha=16.0):
    """LoLDU: W' = W + s P L diag(z) U - (its start), W = P L diag(D) U, only the first r pivots z and s are trained.

    L the first r columns, U the first r rows with ones on the diagonal; z starts at D, s at alpha / r.
    Source: arXiv:2410.13618, checked against the authors' code, not the paper's text. A zero pivot gives no number, as
    there.
    """
    P, L, U = ac.lu(W)
    D = ac.einsum("ii->i", U[:r, :r])
    z, s = ac.param("z", (r,), D), ac.param("s", (), alpha / r)
    E = s * (P @ L[:, :r] @ ac.diag(z / D) @ U[:r])
    return W + E - ac.initial(E)


@ac.adapter
def svft(W, *, d=4):
    """SVFT: W' = W + U M V^T, U and V all singular vectors of W, M trained on 2 d + 1 diagonals.

    Source: arXiv:2405.19597, section 3.1 and the banded pattern, read; d = 0 is the plain one. The thin U and V are
    taken. The authors' code also has a gate, sigmoid(t) M, and draws M from a Kaiming distribution, so that training
    starts away from W; the paper has no gate, and here M starts at zero.
    """
    p = min(W.shape)
    U, S, Vt = ac.svd(W, p)
    band = [(i, j) for i in range(p) for j in range(max(0, i - d), min(p, i + d + 1))]
    M = ac.scatter(ac.param("M", (len(band),), "zeros"), list(zip(*band, strict=True)), (p, p))
    return W + U @ M @ Vt


@ac.adapter
def svfit(W, *, r=8):
    """SVFit: W' = W + U diag(s - S) V^T, the r largest singular values of W trained, everything else frozen.

    Source: arXiv:2409.05926, only the abstract and summaries of it could be read; no code of the authors was found.
    """
    U, S, Vt = ac.svd(W, r)
    s = ac.param("s", (r,), S)
    return W + U @ ac.diag(s - S) @ Vt


@ac.adapter
def spectral_a(W, *, r=8, at=0):
    """Spectral adapter, additive: the singular vectors at .. at + r of W become U + du and V + dv.

    Source: arXiv:2405.13952, checked against the authors' code, not the paper's text. W' = W + du S V^T + U S dv^T +
    du S dv^T; one of their variants also moves S.
    """
    (n, k), (U, S, Vt) = W.shape, ac.svd(W, at + r)
    U, S, Vt = U[:, at:], ac.diag(S[at:]), Vt[at:]
    du = ac.param("du", (n, r), "zeros")
    dv = ac.param("dv", (r, k), "zeros")
    return W + du @ S @ (Vt + dv) + U @ S @ dv


@ac.adapter
def spectral_r(W, *, r=8):
    """Spectral adapter, rotational: the first r singular vectors of W are turned, the singular values scaled by c.

    W' = W + U (R_X diag(c S) R_Y^T - diag(S)) V^T, R_X and R_Y Cayley transforms.
    Source: arXiv:2405.13952, checked against the authors' code, not the paper's text.
    """
    U, S, Vt = ac.svd(W, r)
    X = ac.param("X", (r, r), "zeros")
    Y = ac.param("Y", (r, r), "zeros")
    c = ac.param("c", (r,), "ones")
    return W + U @ (ac.cayley(X) @ ac.diag(c * S) @ ac.cayley(Y).T - ac.diag(S)) @ Vt


@ac.adapter
def psoft(W, *, r=32):
    """PSOFT: W' = W + U S (diag(b) R diag(a) - I) V^T, U S V^T the r largest singular triples of W, R a rotation.

    R = (I + Q)(I - Q)^-1, Q skew-symmetric with the upper triangle q = 0 at the start; a and b start at one.
    Source: arXiv:2505.11235, checked against PEFT, not the paper's text. PEFT's scale psoft_alpha / r is in S^-1 and
    before the product, so that it is none.
    """
    (U, S, Vt), I = ac.svd(W, r), ac.identity(r)
    R = ac.cayley(ac.skew(ac.param("q", (r * (r - 1) // 2,), "zeros"))).T
    a, b = ac.param("a", (r,), "ones"), ac.param("b", (r,), "ones")
    return W + U @ ac.diag(S) @ (ac.diag(b) @ R @ ac.diag(a) - I) @ Vt


@ac.adapter
def tinylora(W, *, layer, r=2, u=64, seed=42):
    """TinyLoRA: W' = W + U sqrt(S) (sum_i v_i P_i) sqrt(S) V^T, U S V^T the r largest singular triples, v trained.

    The P_i (r, r) are random and frozen, from N(0, 1 / r), v (u,) starts at zero.
    Source: arXiv:2602.04118 as PEFT cites it; checked against PEFT, not the paper's text. PEFT seeds P with the number
    of the adapted layer, here with its name; its `weight_tying` shares v among neighbouring layers, here v is a
    layer's own.
    """
    U, S, Vt = ac.svd(W, r)
    P = ac.frozen("P", (u, r, r), ac.normal(r**-0.5), seed=crc32(f"{seed} {layer.name}".encode()), store=False)
    R = ac.einsum("i,ijk->jk", ac.param("v", (u,), "zeros"), P)
    return W + U @ ac.diag(ac.sqrt(S)) @ R @ ac.diag(ac.sqrt(S)) @ Vt


@ac.adapter
def osf(W, *, rank=None):
    """OSF: W' = W + U diag(S) V - (its start), all singular triples of W but the `rank` largest (half of them).

    The gradients of U and V are projected off the frozen singular vectors: value E, gradient of G.
    Source: arXiv:2504.07097, checked against PEFT, not the paper's text. PEFT projects in a hook on the parameter.
    """
    p = min(W.shape)
    (U0, S0, V0), h = ac.svd(W, p), p // 2 if rank is None else rank
    U, S, V = ac.param("U", U0[:, h:].shape, U0[:, h:]), ac.param("S", (p - h,), S0[h:]), None
    V = ac.param("V", V0[h:].shape, V0[h:])
    X = U - U0[:, :h] @ (U0[:, :h].T @ (U - ac.detach(U)))
    Y = V - ((V - ac.detach(V)) @ V0[:h].T) @ V0[:h]
    return W + X @ ac.diag(S) @ Y - ac.initial(U @ ac.diag(S) @ V)


@ac.adapter
def frod(W, *, layer, sparse_rate=0.01, seed=0):
    """FRoD: W' = U (S + diag(l)) V^T, V frozen and shared by the layers of a kind, S sparse, off the diagonal.

    S starts at zero; U diag(l) = W V^-T with columns of length one in U (frozen) and l trained, so that W' = W at the
    start.
    Source: PEFT 0.21.2, not the paper's text. There V is a joint decomposition of all weights of a kind; an equation
    sees one layer, so V holds the right singular vectors of the first layer of the kind.
    """
    n, k = W.shape
    V = ac.frozen("V", (k, k), ac.svd(W.T @ W, k)[0], shared=f"{layer.kind}.V")
    C = W @ ac.inverse(V).T
    l = ac.param("l", (k,), ac.norm(C, axis=0))
    U = ac.initial(C @ ac.diag(1 / ac.maximum(l, 1e-12)))
    if k == 1:
        return U @ ac.diag(l) @ V.T
    count = min(max(1, int(sparse_rate * k * k)), k * (k - 1))
    at = ac.frozen("at", (count,), ac.randperm(k * (k - 1)), seed=seed, store=False)
    places = at + at // k + 1  # row after row: after each k entries off the diagonal one on it follows
    S = ac.reshape(ac.scatter(ac.param("s", (count,), "zeros"), [places], (k * k,)), (k, k))
    return U @ (S + ac.diag(l)) @ V.T


def _clusters(W, generator, r, count, steps=10):
    """K-means on the rows of the r left singular vectors of W, from `count` random rows."""
    U = W.cpu().svd()[0][:, :r]
    centres = U[U.new_ones(len(U)).multinomial(count, generator=generator)]
    for _ in range(steps):
        at = (U[:, None] - centres).norm(dim=2).argmin(1)
        sums = centres.new_zeros(centres.shape).index_add_(0, at, U)
        centres = sums / at.bincount(minlength=count).clamp(min=1)[:, None]
    return at


@ac.adapter
def adamss(W, *, r=100, subspaces=5, rank=1, seed=0):
    """AdaMSS: the rows of the r left singular vectors of W are clustered, cluster c of the outputs gets B_c A_c V^T.

    V the right singular vectors, frozen; A_c (rank, r) starts at the largest right singular vectors of the cluster's
    rows, B_c, rows of B (n, rank), at zero.
    Source: PEFT 0.21.2, not the paper's text. PEFT adds the bias to W as a column, adapts it too and takes K-means from
    scikit-learn; AdaMSS-ASA, which freezes subspaces while it trains, is left out.
    """
    n, p, K = W.shape[0], min(r, *W.shape), min(subspaces, W.shape[0])
    U, S, Vt = ac.svd(W, p)
    at = ac.frozen("at", (n,), partial(_clusters, r=p, count=K), seed=seed, dtype="int64")
    M = ac.take(ac.identity(K), at, axis=0)
    A = ac.param("A", (K * rank, p), ac.vstack([ac.svd(ac.diag(M[:, c]) @ U, rank)[2] for c in range(K)]))
    B = ac.einsum("nc,ns->ncs", M, ac.param("B", (n, rank), "zeros"))
    return W + ac.reshape(B, (n, K * rank)) @ A @ Vt
