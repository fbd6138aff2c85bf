"""Frozen random factors that all layers share."""

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
