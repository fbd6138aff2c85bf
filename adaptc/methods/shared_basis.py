"""Few trained numbers on random factors, or on factors that all layers share."""

import math
from zlib import crc32

import adaptc as ac


@ac.adapter
def vera(W, *, r=256, d0=0.1, seed=0):
    """VeRA: W' = W + diag(b) B diag(d) A with A and B drawn once from a seed.

    Source: arXiv:2310.11454, eq. 2, read. A and B as in PEFT: Kaiming-uniform with a = 0 on the whole tensors,
    one generator, A first; each layer takes their top-left part.
    """
    n, k = W.shape
    A = ac.frozen("A", (r, k), ac.kaiming_uniform(a=0.0), shared="A", seed=seed)
    B = ac.frozen("B", (n, r), ac.kaiming_uniform(a=0.0), shared="B", seed=seed)
    d = ac.param("d", (r,), d0)
    b = ac.param("b", (n,), "zeros")
    return W + ac.diag(b) @ B @ ac.diag(d) @ A


@ac.adapter
def tied_lora(W, *, r=8):
    """Tied-LoRA: W' = W + diag(v) B diag(u) A, A and B trained and shared by all layers, u and v trained per layer.

    Source: arXiv:2311.09578, only the abstract could be read; the formula, VeRA's with A and B trained too, as the
    authors of LoRA-FA describe the paper's variant TL6 in a public review; the start u = 1, v = 0 is ours. Layers of
    unlike sizes share the top-left part.
    """
    n, k = W.shape
    A = ac.param("A", (r, k), "kaiming_uniform", shared="A")
    B = ac.param("B", (n, r), "kaiming_uniform", shared="B")
    u = ac.param("u", (r,), "ones")
    v = ac.param("v", (n,), "zeros")
    return W + ac.diag(v) @ B @ ac.diag(u) @ A


@ac.adapter
def s2_lora(W, *, r=64, gamma=1e-3):
    """S2-LoRA: W' = W + B diag(c) A, A and B trained and shared by all layers, c trained per layer and kept sparse.

    Source: arXiv:2309.11756, only the abstract could be read (shared factors, sparse coefficients per layer); the
    penalty gamma sum |c|, B = 0 and c = 1 are ours.
    """
    n, k = W.shape
    A = ac.param("A", (r, k), "kaiming_uniform", shared="A")
    B = ac.param("B", (n, r), "zeros", shared="B")
    c = ac.param("c", (r,), "ones")
    ac.penalty(gamma * ac.sum(ac.abs(c)))
    return W + B @ ac.diag(c) @ A


@ac.adapter
def nola(W, *, r=8, m=64, alpha=16.0, seed=0):
    """NOLA: W' = W + (alpha / r) (sum_j b_j Q_j) (A_0 + sum_j a_j P_j), random bases P and Q, only a and b trained.

    Source: arXiv:2310.02556, checked against the authors' code, not the paper's text: entries of P and Q from U(-1, 1)
    divided by sqrt(m), a = b = 0, A_0 Kaiming-uniform. There each layer draws its own seed.
    """
    n, k = W.shape
    A0 = ac.frozen("A0", (r, k), "kaiming_uniform", seed=seed, store=False)
    P = ac.frozen("P", (m, r, k), ac.uniform(-1, 1), seed=seed, store=False)
    Q = ac.frozen("Q", (m, n, r), ac.uniform(-1, 1), seed=seed, store=False)
    a, b = ac.param("a", (m,), "zeros"), ac.param("b", (m,), "zeros")
    A = A0 + ac.einsum("j,jrk->rk", a, P) / m**0.5
    B = ac.einsum("j,jnr->nr", b, Q) / m**0.5
    return W + (alpha / r) * (B @ A)


@ac.adapter
def randlora(W, *, r=32, alpha=640.0, seed=0):
    """RandLoRA: W' = W + (alpha / r) sum_j B_j diag(l_j) A diag(g_j), random A and B_j, as many j as give full rank.

    Source: arXiv:2502.00987, eq. 3 and 4, read; A lies on the smaller side, start and scale as in PEFT. PEFT divides
    its draws by their measured standard deviation and multiplies the columns of B_j with the terms in another order;
    here the entries are uniform with standard deviation 1 and the order is the paper's.
    """
    (n, k), (p, q) = W.shape, sorted(W.shape)
    N = -(-p // r)
    A = ac.frozen("A", (r, p), ac.uniform(-(3**0.5), 3**0.5), shared="A", seed=seed)
    B = ac.frozen("B", (q, N, r), ac.uniform(-(3**0.5), 3**0.5), shared="B", seed=seed)
    l = ac.param("l", (r, N), "zeros")
    g = ac.param("g", (N, p), 1 / q)
    E = ac.einsum("qnr,rn,rp,np->qp", B, l, A, g)
    return W + (alpha / r) * (E if n >= k else E.T)


@ac.adapter
def said(W, *, layer, d=100, seed=0):
    """SAID: W' = W + lam (H G P H B z), d numbers z for all layers, mapped into each by a Fastfood transform.

    H Walsh-Hadamard of size N, the next power of two; B signs, P a permutation, G ~ N(0, 1), their own for every layer;
    divided by |G| sqrt(n k) and cut to n k entries; lam is trained per layer.
    Source: arXiv:2012.13255, checked against the authors' code as published with Compacter, not the paper's text.
    """
    D, key = W.shape[0] * W.shape[1], crc32(f"{seed} {layer.name}".encode())
    N = 1 << max(D - 1, d - 1).bit_length()
    z, lam = ac.param("z", (d,), "zeros", shared="z"), ac.param("lam", (), 1.0)
    draws = (("B", d, ac.bernoulli(0.5)), ("G", N, ac.normal(1.0)), ("P", N, ac.randperm(N)))
    B, G, P = (ac.frozen(name, (size,), init, seed=key, store=False) for name, size, init in draws)
    H, start = ac.hadamard_transform(N), ac.scatter((2 * B - 1) * z, [range(d)], (N,))
    E = H @ (G * (ac.permutation(P) @ (H @ start))) / (ac.norm(G) * D**0.5)
    return W + lam * ac.reshape(E[:D], W.shape)


@ac.adapter(identity=False)
def vblora(W, *, r=4, vectors=256, length=256, topk=2):
    """VB-LoRA: W' = W + B A, their rows and columns cut into pieces that are mixtures of vectors of one shared bank.

    A piece is sum_h p_h bank_h, p the softmax over the topk largest logits of the piece. `length` is at most that of a
    vector: the largest common divisor of it and both sizes; layers with shorter ones read the start of the vectors.
    Source: arXiv:2405.15179, checked against PEFT, not the paper's text: bank from U(-0.02, 0.02), logits from
    N(0, 0.1^2), so that W' differs from W at the start. PEFT refuses a length that does not divide both sizes.
    """
    (n, k), b, L, piece = W.shape, math.gcd(length, *W.shape), {}, {}
    bank = ac.param("bank", (vectors, b), ac.uniform(-0.02, 0.02), shared="bank")
    for name, size in (("A", k), ("B", n)):
        L[name] = ac.param(f"L{name}", (size // b, r, vectors), ac.normal(0.1))
        e = ac.exp(L[name]) * ac.topk(L[name], topk, axis=2)
        piece[name] = ac.einsum("trh,tr,hl->tlr", e, 1 / ac.sum(e, axis=2), bank)
    return W + ac.reshape(piece["B"], (n, r)) @ ac.reshape(piece["A"], (k, r)).T


@ac.adapter(identity=False)
def unilora(W, *, layer, r=4, d=256, layers=1, seed=42):
    """Uni-LoRA: W' = W + B A, every entry one of d shared trained numbers z, divided by the root of its occurrences.

    Source: arXiv:2506.00799, checked against PEFT, not the paper's text: z from U(-0.02, 0.02), so that W' differs from
    W at the start; every number occurs about equally often. The paper and PEFT count over all layers of the model, an
    equation sees one: `layers` is how many equal ones there are. The draw is a layer's own.
    """
    (n, k), key = W.shape, crc32(f"{seed} {layer.name}".encode())
    z, (often, more) = ac.param("z", (d,), ac.uniform(-0.02, 0.02), shared="z"), divmod(r * (k + n), d)
    at = ac.frozen("at", (r * (k + n),), ac.randperm(r * (k + n)), seed=key, store=False)
    parts = ((0, more, often + 1), (more, d, often or 1))
    scaled = ac.hstack([z[a:b] / (layers * count) ** 0.5 for a, b, count in parts if a < b])
    entries = ac.take(ac.tile(scaled, at.shape), at, axis=0)
    return W + ac.reshape(entries[r * k :], (n, r)) @ ac.reshape(entries[: r * k], (r, k))
