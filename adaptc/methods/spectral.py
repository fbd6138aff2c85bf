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


@ac.adapter
def waveft(W, *, n_frequency=2592, alpha=25.0, seed=777):
    """WaveFT: W' = W + alpha H_n S H_k^T, H the inverse Haar transform, S zero but for n_frequency trained entries.

    H_n (n, n) takes the averages in its first half of columns and the differences in the second; where n is odd the
    last difference is zero.
    Source: arXiv:2505.12532, checked against PEFT with its default wavelet (db1), not the paper's text. The same seed
    draws the same places, but PEFT takes rows and columns of the two mixed bands the other way round.
    """
    n, k = W.shape
    c = ac.param("c", (n_frequency,), "zeros")
    at = ac.frozen("at", (n_frequency,), ac.randperm(n * k), seed=seed, store=False)
    S, haar = ac.reshape(ac.scatter(c, [at], (n * k,)), (n, k)), ac.hadamard_transform(2) / 2**0.5
    H = []
    for d, h in ((n, -(-n // 2)), (k, -(-k // 2))):
        pairs = ac.permutation([half * h + i for i in range(h) for half in (0, 1)])
        H.append((ac.kron(ac.identity(h), haar) @ pairs)[:d, :d])
    return W + alpha * (H[0] @ S @ H[1].T)
