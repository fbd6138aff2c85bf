"""Updates that are elementwise or Kronecker products of small matrices."""

import adaptc as ac


@ac.adapter
def loha(W, *, r=8, alpha=8.0):
    """LoHa: W' = W + (alpha / r) (B1 A1) * (B2 A2), elementwise.

    Source: arXiv:2309.14859, eq. 3 (the idea: FedPara, arXiv:2108.06098, proposition 1), read. A2 starts at zero as
    in PEFT.
    """
    n, k = W.shape
    A1, A2 = ac.param("A1", (r, k), "kaiming_uniform"), ac.param("A2", (r, k), "zeros")
    B1, B2 = (ac.param(f"B{i}", (n, r), "kaiming_uniform") for i in (1, 2))
    return W + (alpha / r) * ((B1 @ A1) * (B2 @ A2))


@ac.adapter
def lokr(W, *, r=8, alpha=8.0, near=None):
    """LoKr: W' = W + (alpha / r) kron(W1, W2); W2 is a product of rank r where that is smaller.

    Source: arXiv:2309.14859, eq. 4 and 5, read. The split of the sizes and W1 = 0 at the start as in PEFT.
    """
    (a, p), (b, q) = (ac.factor_pair(size, near) for size in W.shape)
    W1 = ac.param("w1", (a, b), "zeros")
    if 2 * r < max(p, q):
        W2 = ac.param("w2_a", (p, r), "kaiming_uniform") @ ac.param("w2_b", (r, q), "kaiming_uniform")
    else:
        W2 = ac.param("w2", (p, q), "kaiming_uniform")
    return W + (alpha / r) * ac.kron(W1, W2)
