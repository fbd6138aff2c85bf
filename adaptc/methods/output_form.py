"""Methods that add a function of x to the output; they cannot be merged into W."""

import adaptc as ac


@ac.adapter
def parallel_adapter(x, y, *, d=64, s=1.0):
    """Parallel adapter: y' = y + s relu(x A^T) B^T, A (d, k), B (n, d).

    Source: arXiv:2110.04366 (scaled parallel adapter), checked against the authors' code, not the paper's text.
    Their layer also
    has biases, zero at the start, and s = 4 around a whole feed-forward sublayer.
    """
    k, n = x.shape[1], y.shape[1]
    A = ac.param("A", (d, k), "kaiming_uniform")
    B = ac.param("B", (n, d), "zeros")
    return y + s * ac.linear(ac.relu(ac.linear(x, A)), B)


@ac.adapter
def lora_mixture(x, y, *, experts=2, r=8, alpha=16.0):
    """Mixture of LoRA experts: y' = y + (alpha / r) sum_e softmax(x G^T)_e x A_e^T B_e^T, the gate per token.

    Source: LoRAMoE, arXiv:2312.09979, and MoLoRA, arXiv:2309.05444, checked against both authors' code, not the
    papers' text.
    """
    k, n = x.shape[1], y.shape[1]
    G = ac.param("G", (experts, k), "kaiming_uniform")
    A = ac.param("A", (experts, r, k), "kaiming_uniform")
    B = ac.param("B", (experts, n, r), "zeros")
    gate = ac.softmax(x @ G.T, axis=1)
    return y + (alpha / r) * ac.einsum("me,erk,mk,enr->mn", gate, A, x, B)
