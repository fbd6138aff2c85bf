"""Updates of a few entries of W."""

import adaptc as ac


@ac.adapter
def shira(W, *, r=8, seed=0):
    """SHiRA: W' = W + a sparse matrix with r (n + k) trained entries at random places.

    Source: arXiv:2406.13175, section 3.1 and appendix I, read; the count is PEFT's. PEFT stores the values sorted by
    place,
    here they stand in the order drawn (the same set of places for the same seed).
    """
    (n, k), m = W.shape, r * sum(W.shape)
    v = ac.param("v", (m,), "zeros")
    at = ac.frozen("at", (m,), ac.randperm(n * k), seed=seed, store=False)
    return W + ac.reshape(ac.scatter(v, [at], (n * k,)), (n, k))
