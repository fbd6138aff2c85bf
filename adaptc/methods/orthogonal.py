"""Rotations and reflections of the inputs."""

import adaptc as ac


@ac.adapter
def oft(W, *, b=32):
    """OFT: W' = W R^T, R block-diagonal rotations by the Cayley transform of skew matrices.

    Source: arXiv:2306.07280, eq. 2 and 3, and arXiv:2506.19847, eq. 2, read. With PEFT's `use_cayley_neumann=False`;
    PEFT's
    default is a truncated series of the transpose, R(-v) to first order.
    """
    n, k = W.shape
    v = ac.param("v", (ac.divide(k, b), b * (b - 1) // 2), "zeros")
    return W @ ac.block_diag(ac.cayley(ac.skew(v))).T


@ac.adapter
def boft(W, *, b=4, stages=2, scale=True):
    """BOFT: W' = diag(c) W R^T, R a butterfly of block-diagonal rotations; scale=False leaves c out.

    Source: arXiv:2311.06243, section 4, eq. 1 and 2, read; c is the re-scaled OFT of arXiv:2306.07280, section 3.5,
    as in PEFT.
    """
    n, k = W.shape
    X = ac.param("X", (stages, ac.divide(k, b), b, b), "zeros")
    turned = W @ ac.butterfly(ac.cayley(X)).T
    return ac.diag(ac.param("c", (n,), "ones")) @ turned if scale else turned


@ac.adapter
def hra(W, *, r=8):
    """HRA: W' = W H_0 ... H_{r-1}, Householder reflections whose columns start in equal pairs, so that they cancel.

    Source: arXiv:2405.17484, eq. 1, read. r must be even. The paper's optional penalty on U is not part of W'.
    """
    n, k = W.shape
    U = ac.param("U", (k, r), "paired_kaiming")
    return W @ ac.householder(U)
