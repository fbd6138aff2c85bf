"""Rotations and reflections of the inputs."""

import math

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


@ac.adapter(identity=False)
def ether(W, *, g=4):
    """ETHER: W' = W H, H block-diagonal with g Householder reflections I - 2 u u^T / |u|^2.

    Source: arXiv:2405.20271, eq. 1 and section 3.4, read. A reflection is never the identity. The authors' code
    reshapes W so that the blocks act on groups of outputs; here they act on groups of inputs, as in the paper.
    """
    u = ac.param("u", (g, ac.divide(W.shape[1], g), 1), "kaiming_uniform")
    return W @ ac.block_diag(ac.householder(u))


@ac.adapter
def ether_plus(W, *, g=4):
    """ETHER+: W' = H_0 W H_1, each H block-diagonal with g blocks I - u u^T / |u|^2 + v v^T / |v|^2.

    Source: arXiv:2405.20271, section 3.3 and 3.4, read; both sides, as there. v = -u at the start, as in the authors'
    code, so that H is the identity; a block is I plus half the difference of two reflections.
    """
    for side, size in enumerate(W.shape):
        u = ac.param(f"u{side}", (g, ac.divide(size, g), 1), "kaiming_uniform")
        v = ac.param(f"v{side}", u.shape, -u)
        R = ac.block_diag((ac.householder(u) - ac.householder(v)) / 2)
        W = W + (W @ R if side else R @ W)
    return W


@ac.adapter
def givens(W):
    """GOFT: W' = W (P_1 P_2 ... )^T diag(c), P_r turns the pairs of inputs 2^(r-1) apart, k - 1 angles in all.

    Source: arXiv:2404.04316, eq. 3 and 4, read; any k, the last ones left out where they have no partner. The angle
    pi tanh(t) and the scales c as in the authors' code, whose forward pairs neighbours in every stage and so does not
    rotate. The quasi-orthogonal form of the paper trains the 2 x 2 blocks themselves.
    """
    k = W.shape[1]
    for d in reversed([2**r for r in range((k - 1).bit_length())]):
        i, j = range(0, k - d, 2 * d), range(d, k, 2 * d)
        W = W @ ac.givens(i, j, math.pi * ac.tanh(ac.param(f"t{d}", (len(j),), "zeros")), k).T
    return W @ ac.diag(ac.param("c", (k,), "ones"))
