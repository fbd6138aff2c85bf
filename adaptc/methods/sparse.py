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


@ac.adapter
def supertuning(W, *, density=0.01):
    """Super-tuning: W' = W + a sparse matrix with a trained entry where W is one of its `density` n k largest.

    Source: arXiv:2607.09287 as PEFT cites it; checked against PEFT, not the paper's text. PEFT stores the values in
    the order of magnitude, here they stand row by row; Supra, its sum with a LoRA, is two adapters on a layer here.
    """
    n, k = W.shape
    count = max(1, int(density * n * k))
    at = ac.nonzero(ac.topk(ac.abs(W), count))
    return W + ac.scatter(ac.param("v", (count,), "zeros"), at, (n, k))
