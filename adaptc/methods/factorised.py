"""Updates that start from, or live inside, a factorisation of W: singular vectors, QR, LU, rows and columns of W."""

import adaptc as ac


@ac.adapter
def pissa(W, *, r=8, alpha=16.0):
    """PiSSA: LoRA started at the principal singular triples of W, which are taken out of W.

    W' = W + s (B A - B_0 A_0), B_0 = U sqrt(S / s), A_0 = sqrt(S / s) V^T, s = alpha / r.
    Source: arXiv:2404.02948, eq. 2 to 5, read; s as in PEFT (the paper has alpha = r). W itself is never rewritten.
    """
    (n, k), s = W.shape, alpha / r
    U, S, Vt = ac.svd(W, r)
    A = ac.param("A", (r, k), ac.diag(ac.sqrt(S / s)) @ Vt)
    B = ac.param("B", (n, r), U @ ac.diag(ac.sqrt(S / s)))
    return W + s * (B @ A) - ac.initial(s * (B @ A))


@ac.adapter
def olora(W, *, r=8, alpha=16.0):
    """OLoRA: LoRA started at the first r columns of Q and rows of R, W = Q R, and their product taken out of W.

    W' = W + s (B A - B_0 A_0), B_0 = Q[:, :r], A_0 = R[:r], s = alpha / r.
    Source: arXiv:2406.01775, checked against PEFT (written by the paper's author), not the paper's text. W itself is
    never rewritten.
    """
    (n, k), s = W.shape, alpha / r
    Q, R = ac.qr(W)
    A = ac.param("A", (r, k), R[:r])
    B = ac.param("B", (n, r), Q[:, :r])
    return W + s * (B @ A) - ac.initial(s * (B @ A))


@ac.adapter
def corda(W, *, r=8, alpha=16.0, damp=0.01):
    """CorDA: PiSSA on W C, C the second moment of the inputs, with the inverse of C in A.

    U S V^T = svd(W C); W' = W + s (B A - B_0 A_0), B_0 = U sqrt(S / s), A_0 = sqrt(S / s) V^T C^-1, s = alpha / r.
    Source: arXiv:2406.05223, checked against the authors' code and PEFT, not the paper's text. This is the mode for
    adapting to instructions (the r largest triples); the one that keeps knowledge takes the r smallest. They double
    `damp` until C is inverted well, here it stands; PEFT also divides every batch of inputs by its largest entry,
    which moves a factor between B_0 and A_0 and leaves W' as it is.
    """
    (n, k), s = W.shape, alpha / r
    C = ac.given("second_moment", (k, k), at="attach")
    C = C + (damp / k) * ac.einsum("ii->", C) * ac.identity(k)
    U, S, Vt = ac.svd(W @ C, r)
    A = ac.param("A", (r, k), ac.diag(ac.sqrt(S / s)) @ Vt @ ac.inverse(C))
    B = ac.param("B", (n, r), U @ ac.diag(ac.sqrt(S / s)))
    return W + s * (B @ A) - ac.initial(s * (B @ A))


@ac.adapter(identity=False)
def kasa(W, *, r=8, alpha=16.0, beta=1e-4, gamma=1e-3):
    """KaSA: W' = W without its r smallest singular triples + (alpha / r) B diag(d) A, with two penalties.

    beta |d|^2 keeps the singular values small, gamma (|B^T B - I| + |A A^T - I|) the factors orthogonal.
    Source: arXiv:2412.06071, eq. 9 to 11 as PEFT cites them; checked against the authors' code and PEFT, not the
    paper's text. The truncation as in PEFT; the authors' keeps k - r triples, which drops fewer where n < k.
    """
    (n, k), I = W.shape, ac.identity(r)
    U, S, Vt = ac.svd(W, min(n, k))
    A = ac.param("A", (r, k), "kaiming_uniform")
    B = ac.param("B", (n, r), "zeros")
    d = ac.param("d", (r,), ac.normal(1.0))
    ac.penalty(beta * ac.sum(d * d) + gamma * (ac.norm(B.T @ B - I) + ac.norm(A @ A.T - I)))
    return W - U[:, -r:] @ ac.diag(S[-r:]) @ Vt[-r:] + (alpha / r) * (B @ ac.diag(d) @ A)


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
def lora_sb(W, *, r=8, alpha=8.0, lr=1e-4):
    """LoRA-SB: W' = W + (alpha / r) U R V^T, started at the best approximation of the first step of full fine-tuning.

    U S V^T = the r largest singular triples of -lr sign(G), G the gradient at W; only R is trained, from diag(S).
    Source: arXiv:2411.19557, checked against the authors' code, not the paper's text. There lr is the rate of the
    first step, the base is not corrected either, and alpha = r.
    """
    G = ac.given("gradient", W.shape, at="attach")
    U, S, Vt = ac.svd(-lr * ((G > 0) - (G < 0)), r)
    R = ac.param("R", (r, r), ac.diag(S))
    return W + (alpha / r) * (U @ R @ Vt)


@ac.adapter(identity=False)
def edora(W, *, r=8, alpha=16.0, sigma=1e-5):
    """EDoRA: DoRA on LoRA-XS, W' = diag(m / |V|) V with V = W + (alpha / r) U R diag(S) Z^T, U S Z^T = svd(W).

    Source: arXiv:2501.12067, checked against the authors' code, not the paper's text: R and m are trained, the norms
    of V's rows are not differentiated.
    """
    (n, k), (U, S, Zt) = W.shape, ac.svd(W, r)
    R = ac.param("R", (r, r), ac.normal(sigma))
    V = W + (alpha / r) * (U @ R @ ac.diag(S) @ Zt)
    m = ac.param("m", (n,), ac.norm(W, axis=1))
    return ac.diag(m / ac.detach(ac.norm(V, axis=1))) @ V


@ac.adapter(identity=False)
def nlora(W, *, r=8, alpha=8.0):
    """NLoRA: W' = W + (alpha / r) B N A, started at the first r columns, the r x r corner and the first r rows of W.

    Source: arXiv:2502.14482, checked against the authors' code, not the paper's text. Nystroem's formula has the
    inverse of the corner, which the code has commented out; nothing is taken out of W there, so W' differs from W.
    """
    n, k = W.shape
    A = ac.param("A", (r, k), W[:r])
    N = ac.param("N", (r, r), W[:r, :r])
    B = ac.param("B", (n, r), W[:, :r])
    return W + (alpha / r) * (B @ N @ A)


@ac.adapter
def curlora(W, *, c=8, alpha=1.0, seed=0):
    """CURLoRA: W' = W + alpha C M R, C and R columns and rows of W, drawn so that small ones are likely.

    Column j has the probability p_j ~ 1 / (|W_j|^2 / |W|^2 + 0.001), with replacement; M (c, c) is trained from zero.
    Source: arXiv:2408.14572, checked against the authors' code, not the paper's text.
    """

    def pick(W, axis, generator):
        p = 1 / (W.norm(dim=axis) ** 2 / W.norm() ** 2 + 1e-3)
        return p.cpu().multinomial(c, True, generator=generator)

    cols = ac.frozen("cols", (c,), lambda W, generator: pick(W, 0, generator), seed=seed, dtype="int64")
    rows = ac.frozen("rows", (c,), lambda W, generator: pick(W, 1, generator), seed=seed, dtype="int64")
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
