"""Updates that are computed from W: projections of it, and small networks on its columns."""

import adaptc as ac


@ac.adapter
def deft(W, *, r=8, alpha=None, decomposition="relu"):
    """DEFT: W' = (I - P Q^T) W + s P R, Q = relu(P); or P and Q both the orthonormal factor of P, for "qr".

    P (n, r) from N(0, 0.02^2), R (r, k) starts at Q^T W / s, so that W' = W; s = alpha / r, 1 without alpha.
    Source: PEFT 0.21.2, neither the paper nor its code was read. PEFT computes all of it in float32 and lowers r to n;
    its PaRa, which leaves R out, is another method.
    """
    (n, k), s = W.shape, alpha / r if alpha else 1.0
    P = ac.param("P", (n, r), ac.normal(0.02))
    P, Q = (P, ac.relu(P)) if decomposition == "relu" else 2 * (ac.orthonormal(P),)
    R = ac.param("R", (r, k), Q.T @ W / s)
    return W + P @ (s * R - Q.T @ W)


@ac.adapter
def peanut(W, *, r=32, depth=0, s=1.0):
    """PEANuT: W' = W + s B f(A W), a ReLU network f on the columns of W, A (r, n), B (n, r) zero at the start.

    f(h) = relu(h), then `depth` layers relu(E_i h) and `depth` layers relu(D_i h) + the input of E_(depth - 1 - i).
    Source: arXiv:2410.01870, checked against PEFT, not the paper's text. PEFT also takes other activations.
    """
    n, kept = W.shape[0], []
    h = ac.relu(ac.param("A", (r, n), "kaiming_uniform") @ W)
    for i in range(depth):
        kept.append(h)
        h = ac.relu(ac.param(f"E{i}", (r, r), "kaiming_uniform") @ h)
    for i in range(depth):
        h = ac.relu(ac.param(f"D{i}", (r, r), "kaiming_uniform") @ h) + kept.pop()
    return W + s * (ac.param("B", (n, r), "zeros") @ h)
