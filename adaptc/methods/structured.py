"""Updates that repeat few numbers in a fixed pattern, of full rank."""

import math

import adaptc as ac


@ac.adapter
def surm_circulant(W):
    """SURM, circulant: W' = W + circulant(c), c the first column.

    Source: arXiv:2406.17740, checked against the authors' code, not the paper's text. It asks for n = k, here the
    top-left part of the larger square is taken; there c may also be a product of two vectors, one zero at the start.
    """
    n, k = W.shape
    c = ac.param("c", (max(n, k),), "zeros")
    return W + ac.circulant(c)[:n, :k]


@ac.adapter
def surm_toeplitz(W):
    """SURM, Toeplitz: W' = W + T, T_ij = t[i - j + k - 1].

    Source: arXiv:2406.17740, only the abstract and the authors' code could be read. Their code has the product of two
    symmetric Toeplitz matrices, one zero at the start, and n = k; here one general matrix of any size.
    """
    n, k = W.shape
    return W + ac.toeplitz(ac.param("t", (n + k - 1,), "zeros"), (n, k))


@ac.adapter
def miss(W, *, r=8):
    """MiSS: W' = W + [D^T D^T ...], D (r, n), cut to k columns: inputs r apart share a column.

    Source: arXiv:2409.15371, eq. 2 and 7, read; which inputs share as in PEFT. PEFT's `bat` and `mini` are other
    methods.
    """
    n, k = W.shape
    return W + ac.tile(ac.param("D", (r, n), "zeros").T, (n, k))


@ac.adapter
def mora(W, *, r=8):
    """MoRA, type 1: W'_ij = W_ij + M[i mod q, j mod q], M square of about the size of a LoRA of rank r.

    Source: arXiv:2405.12130, checked against the authors' code, not the paper's text. Where q does not divide k, the
    last group of inputs is filled up with the first ones, which then count twice.
    """
    (n, k), q = W.shape, int(math.sqrt(sum(W.shape) * r) + 0.5)
    M, padded = ac.param("M", (q, q), "zeros"), -(-k // q) * q
    return W + ac.tile(M, (n, padded)) @ ac.tile(ac.identity(k), (padded, k))


@ac.adapter
def mora6(W, *, r=8):
    """MoRA, type 6: M acts on every group of q inputs, group i turned by i positions of a rotary embedding.

    Source: arXiv:2405.12130, checked against the authors' code, not the paper's text: q is rounded down to even, the
    last group is filled up with the first inputs, the groups of outputs are repeated or cut to n.
    """
    (n, k), h = W.shape, max(1, int(math.sqrt(sum(W.shape) * r) + 0.5) // 2)
    M, N = ac.param("M", (2 * h, 2 * h), "zeros"), -(-k // (2 * h))
    turn = ac.rotation2d([[i * 10000 ** (-j / h) for j in range(h)] for i in range(N)])
    E = ac.on_axes(M, (N, 2 * h), (1,)) @ ac.on_axes(turn, (N, 2, h), (1,))
    return W + ac.tile(E, (n, N * 2 * h)) @ ac.tile(ac.identity(k), (N * 2 * h, k))


@ac.adapter
def miss_bat(W, *, r=8):
    """MiSS, bat: every r x r block W_ij becomes W_ij + W_ij D_i + D_i, one D_i (r, r) for each group of r outputs.

    Source: arXiv:2409.15371 (Bone's "bat"), checked against PEFT (`init_weights="bat"`), not the paper's text.
    """
    n, k = W.shape
    D = ac.param("D", (ac.divide(n, r), r, r), "zeros")
    E = ac.einsum("iajb,ibc->iajc", ac.reshape(W, (ac.divide(n, r), r, ac.divide(k, r), r)), D)
    return W + ac.reshape(E, (n, k)) + ac.tile(ac.reshape(D, (n, r)), (n, k))
