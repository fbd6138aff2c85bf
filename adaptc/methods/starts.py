"""LoRA with trained factors that start from W, its gradient or its inputs: singular vectors, QR, rows and columns."""

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
