"""Updates of low rank: B A."""

import adaptc as ac


@ac.adapter
def lora(W, *, r=8, alpha=16.0):
    """LoRA: W' = W + (alpha / r) B A.

    Source: arXiv:2106.09685, eq. 3, read. The paper draws A from a Gaussian; Kaiming-uniform is what its code and
    PEFT do.
    """
    n, k = W.shape
    A = ac.param("A", (r, k), "kaiming_uniform")
    B = ac.param("B", (n, r), "zeros")
    return W + (alpha / r) * (B @ A)


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
def dora(W, *, r=8, alpha=16.0):
    """DoRA: W' = diag(m / |V|) V with V = W + (alpha / r) B A, |V| the norms of its rows, not differentiated.

    Source: arXiv:2402.09353, eq. 5, the constant norm from section 4.3, read. One norm per output, as in PEFT.
    """
    n, k = W.shape
    A = ac.param("A", (r, k), "kaiming_uniform")
    B = ac.param("B", (n, r), "zeros")
    V = W + (alpha / r) * (B @ A)
    m = ac.param("m", (n,), ac.norm(W, axis=1))
    return ac.diag(m / ac.detach(ac.norm(V, axis=1))) @ V
