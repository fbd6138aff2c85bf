"""Few trained numbers between frozen factors of W: singular vectors, LU, columns and rows of W."""

from functools import partial

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
