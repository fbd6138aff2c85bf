"""Updates of low rank: B A with one of the factors frozen, masked, split into blocks or weighed."""

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
def lora_fa(W, *, r=8, alpha=16.0):
    """LoRA-FA: W' = W + (alpha / r) B A, A random and frozen.

    Source: arXiv:2308.03303, only the abstract could be read (A is frozen, B is trained); no code of the authors was
    found. Init and scale as in LoRA. PEFT has an optimiser of this name that also corrects the gradient of B: it is
    the recipe of the paper's second version and no part of W'.
    """
    n, k = W.shape
    A = ac.frozen("A", (r, k), "kaiming_uniform")
    B = ac.param("B", (n, r), "zeros")
    return W + (alpha / r) * (B @ A)


@ac.adapter
def lora_asym(W, *, r=8, alpha=16.0):
    """Asymmetric LoRA: W' = W + (alpha / r) B A, A frozen with random orthonormal rows.

    Source: arXiv:2402.16842, checked against the authors' code, not the paper's text. There A is the first r rows that
    an SVD of a uniform random n x k matrix gives; here it is drawn orthogonal directly. r may not exceed k for that.
    """
    n, k = W.shape
    A = ac.frozen("A", (r, k), "orthogonal")
    B = ac.param("B", (n, r), "zeros")
    return W + (alpha / r) * (B @ A)


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


@ac.adapter
def slora(W, *, r=8, alpha=16.0):
    """SLoRA: W' = W + (alpha / r) B N A with a trained r x r matrix N in the middle.

    Source: arXiv:2502.14482, checked against the authors' code, not the paper's text: A and N Kaiming-uniform, B = 0.
    """
    n, k = W.shape
    A = ac.param("A", (r, k), "kaiming_uniform")
    N = ac.param("N", (r, r), "kaiming_uniform")
    B = ac.param("B", (n, r), "zeros")
    return W + (alpha / r) * (B @ N @ A)


@ac.adapter
def adalora(W, *, r=12, alpha=8.0, gamma=0.1):
    """AdaLoRA: W' = W + (alpha / (r + 1e-5)) B diag(e) A, with a penalty that keeps B and A orthogonal.

    Source: arXiv:2303.10512, eq. 3 and 4, read: e = 0 at the start and R = |B^T B - I|^2 + |A A^T - I|^2. The scale
    and the draws N(0, 0.02^2) as in PEFT; PEFT's penalty is the mean of the norms, not of their squares. Pruning e is
    a matter of training, not of W'.
    """
    (n, k), I = W.shape, ac.identity(r)
    A = ac.param("A", (r, k), ac.normal(0.02))
    B = ac.param("B", (n, r), ac.normal(0.02))
    e = ac.param("e", (r,), "zeros")
    for error in (B.T @ B - I, A @ A.T - I):
        ac.penalty(gamma * ac.sum(error * error))
    return W + (alpha / (r + 1e-5)) * (B @ ac.diag(e) @ A)


@ac.adapter
def triadaptlora(W, *, r=8, alpha=16.0):
    """TriAdaptLoRA: W' = W + (alpha / (r + 1e-5)) B (L + U) A, L lower and U upper triangular.

    Source: arXiv:2501.08008, only the abstract and one public code of unknown authors could be read. There the rank
    grows, a block row of L and a block column of U at a time; here it is fixed. That code starts everything but A at
    zero, where no gradient arises; here only B is zero.
    """
    n, k = W.shape
    A = ac.param("A", (r, k), ac.normal(0.02))
    B = ac.param("B", (n, r), "zeros")
    L, U = ac.param("L", (r, r), ac.normal(0.02)), ac.param("U", (r, r), ac.normal(0.02))
    return W + (alpha / (r + 1e-5)) * (B @ (ac.tril(L) + ac.triu(U)) @ A)


@ac.adapter
def capaboost(W, *, r=8, d=2, density=0.5, alpha=16.0, seed=0):
    """CapaBoost: W' = W + (alpha / r) sum_i (P_i * B) (Q_i * A), one A and B under d pairs of random 0/1 masks.

    Source: arXiv:2407.01320, checked against the authors' code, not the paper's text. There a mask has exactly the
    share `density` of ones, here each entry is one with that probability; their 2:4 masks are left out.
    """
    n, k = W.shape
    A = ac.param("A", (r, k), "kaiming_uniform")
    B = ac.param("B", (n, r), "zeros")
    P = ac.frozen("P", (d, n, r), ac.bernoulli(density), seed=seed, store=False)
    Q = ac.frozen("Q", (d, r, k), ac.bernoulli(density), seed=seed, store=False)
    return W + (alpha / r) * sum((P[i] * B) @ (Q[i] * A) for i in range(d))


@ac.adapter
def melora(W, *, ranks=(4, 4), alpha=16.0):
    """MELoRA: W' = W + block-diagonal of small LoRAs (alpha / r_i) B_i A_i, one for each part of inputs and outputs.

    Source: arXiv:2402.17263, checked against the authors' code, not the paper's text. There every block may have its
    own alpha.
    """
    (n, k), g = W.shape, len(ranks)
    A = [ac.param(f"A{i}", (r, ac.divide(k, g)), "kaiming_uniform") for i, r in enumerate(ranks)]
    B = [ac.param(f"B{i}", (ac.divide(n, g), r), "zeros") for i, r in enumerate(ranks)]
    return W + ac.block_diag(*((alpha / r) * (B[i] @ A[i]) for i, r in enumerate(ranks)))


@ac.adapter
def lora_bd(W, *, r=8, alpha=16.0, blocks=4, diagonal="A"):
    """BD-LoRA: W' = W + (alpha / r) B A, A or B (`diagonal` says which) block-diagonal with `blocks` blocks.

    The blocks of A are (r / blocks, k / blocks), of B (n / blocks, r / blocks); the other factor is full.
    Source: PEFT 0.21.2 (`BdLoraConfig`), not the paper's text. There the names of the layers say which factor it is;
    a block-diagonal A is Kaiming-uniform with a = 0, a full one with a = sqrt 5, and so here.
    """
    (n, k), p = W.shape, ac.divide(r, blocks)
    if diagonal == "A":
        A = ac.block_diag(ac.param("A", (blocks, p, ac.divide(k, blocks)), ac.kaiming_uniform(a=0.0)))
        return W + (alpha / r) * (ac.param("B", (n, r), "zeros") @ A)
    A = ac.param("A", (r, k), "kaiming_uniform")
    return W + (alpha / r) * (ac.block_diag(ac.param("B", (blocks, ac.divide(n, blocks), p), "zeros")) @ A)


@ac.adapter
def delora(W, *, r=8, lam=15.0):
    """DeLoRA: W' = W + (lam / r) B diag(1 / (|b_i| |a_i|)) A diag(|w_j|), columns b_i, rows a_i, columns w_j of W.

    lam is trained, from 15; norms below 1e-4 count as that and have no derivative.
    Source: arXiv:2503.18225, checked against PEFT, not the paper's text. The paper takes a copy of the random start
    out of W, PEFT and this start with B = 0.
    """
    n, k = W.shape
    A = ac.param("A", (r, k), "kaiming_uniform")
    B = ac.param("B", (n, r), "zeros")
    a, b = ac.maximum(ac.norm(A, axis=1), 1e-4), ac.maximum(ac.norm(B, axis=0), 1e-4)
    return W + ac.param("lam", (), lam) / r * (B @ ac.diag(1 / (a * b)) @ A @ ac.diag(ac.norm(W, axis=0)))


@ac.adapter
def gralora(W, *, r=32, k=2, alpha=64.0):
    """GraLoRA: W' = W + (alpha / r) E, a k x k grid of blocks E_ij = B_ij A_ij, each of rank r / k.

    Source: arXiv:2505.20355, checked against PEFT, not the paper's text. PEFT stacks the A_ij of one group of inputs
    and the B_ij of one group of outputs; its hybrid with a full LoRA (`hybrid_r`) is left out.
    """
    p, q, s = ac.divide(W.shape[0], k), ac.divide(W.shape[1], k), ac.divide(r, k)
    A = ac.param("A", (k, k, s, q), "kaiming_uniform")
    B = ac.param("B", (k, k, p, s), "zeros")
    return W + (alpha / r) * ac.blocks(B @ A)
