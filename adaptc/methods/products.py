"""Updates that are elementwise, Kronecker or tensor products of small matrices."""

import itertools
import math

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


@ac.adapter
def diffusekrona(W, *, a1=4, a2=4):
    """DiffuseKronA: W' = W + kron(A, B), A (a1, a2).

    Source: arXiv:2402.17412, checked against the authors' code, not the paper's text: A from N(0, 1 / a1^2), B = 0. For
    3-D inputs their forward gives the outputs of kron(A, B) in another order.
    """
    n, k = W.shape
    A = ac.param("A", (a1, a2), ac.normal(1 / a1))
    B = ac.param("B", (ac.divide(n, a1), ac.divide(k, a2)), "zeros")
    return W + ac.kron(A, B)


@ac.adapter
def sum_of_krons(W, *, q=4, r=1):
    """Compacter's weight as an update: W' = W + sum_i kron(A_i, s_i t_i), A (q, q, q) shared by all layers.

    Source: arXiv:2106.04647, checked against the authors' code, not the paper's text. There the sum is the weight of
    an adapter's layer, not an update of W, and no factor starts at zero; here s does.
    """
    n, k = W.shape
    A = ac.param("A", (q, q, q), ac.normal(0.01), shared="A")
    s = ac.param("s", (q, ac.divide(n, q), r), "zeros")
    t = ac.param("t", (q, r, ac.divide(k, q)), "kaiming_uniform")
    return W + sum(ac.kron(A[i], s[i] @ t[i]) for i in range(q))


@ac.adapter
def quanta(W, *, dims=None, d=3):
    """QuanTA: W' = W + Q - Q_0, inputs seen as a tensor of sizes `dims`, Q one trained gate for each pair of its axes.

    Source: arXiv:2406.00132, checked against the authors' code, not the paper's text: the gates of the last axes act
    first; Q is padded with zeros or cut to n x k, and without `dims` all d axes have the least size that covers it.
    """
    (n, k), dims = W.shape, dims or d * (math.ceil(round(max(W.shape) ** (1 / d), 9)),)
    Q = ac.identity(math.prod(dims))
    for a, b in itertools.combinations(reversed(range(len(dims))), 2):
        size = dims[a] * dims[b]
        Q = ac.on_axes(ac.param(f"T{b}{a}", (size, size), "kaiming_uniform"), dims, (b, a)) @ Q
    return W + Q[:n, :k] - ac.initial(Q[:n, :k])


@ac.adapter(identity=False)
def loretta(W, *, rank=5, r=8, alpha=16.0):
    """LoRETTA (rep): W' = W + (alpha / r) (A B)^T, A (k, r) and B (r, n) tensor trains of three cores, reshaped.

    Source: arXiv:2402.11417, checked against the authors' code, not the paper's text: all cores are Gaussian, so that
    W' differs from W at the start. They take the sizes of the cores from a table; here they are near-equal factors.
    """
    (n, k), factors = W.shape, []
    for name, sizes in (("A", (k, r)), ("B", (r, n))):
        m, rest = ac.factor_pair(math.prod(sizes), round(math.prod(sizes) ** (1 / 3)))
        std = sum(sizes) ** (-1 / 6)
        shapes = zip((1, rank, rank), (m, *ac.factor_pair(rest)), (rank, rank, 1), strict=True)
        G = [ac.param(f"{name}{i}", (a, m, 1, b), ac.normal(std / b**0.5)) for i, (a, m, b) in enumerate(shapes)]
        factors.append(ac.reshape(ac.tensor_train(G), sizes))
    return W + (alpha / r) * (factors[0] @ factors[1]).T
