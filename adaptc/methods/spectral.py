"""Updates that are sparse or structured in the Fourier domain."""

import adaptc as ac


@ac.adapter
def fourierft(W, *, m=1000, alpha=150.0, seed=777):
    """FourierFT: W' = W + alpha Re(F_n^-1 S F_k^-1), S zero but for m trained entries at random places.

    Source: arXiv:2405.03003, eq. 2 to 4 and algorithm 1, read; the inverse transforms carry 1 / (n k). The paper and
    PEFT draw
    c from N(0, 1), so that training starts away from W; here c starts at zero, PEFT's option `init_weights=True`.
    """
    n, k = W.shape
    c = ac.param("c", (m,), "zeros")
    at = ac.frozen("at", (m,), ac.randperm(n * k), seed=seed, store=False)
    S = ac.reshape(ac.scatter(c, [at], (n * k,)), (n, k))
    return W + alpha * ac.real(ac.idft(n) @ S @ ac.idft(k))


@ac.adapter
def c3a(W, *, b=8):
    """C3A: W' = W + blocks of circulant matrices / k, each with its kernel as the first row.

    Source: arXiv:2407.19342, eq. 1, 3 and 4, read; 1 / k as in PEFT. PEFT draws c from a Xavier distribution; here c
    starts at
    zero. PEFT 0.21.2's gradient of x is wrong (measured: 100 % off); its y and gradient of c are not.
    """
    n, k = W.shape
    c = ac.param("c", (ac.divide(n, b), ac.divide(k, b), b), "zeros")
    return W + ac.blocks(ac.circulant(c).T) / k
