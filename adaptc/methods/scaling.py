"""Scales of single weights, scales and rotations of the outputs, the bias among them."""

import adaptc as ac


@ac.adapter
def ia3(W, bias, *, feedforward=False):
    """IA3: every output is scaled, W' = diag(l) W, bias' = l * bias; as `feedforward` every input, W' = W diag(l).

    Source: arXiv:2205.05638, section 3.3, read; the bias as in PEFT's form for keys and values.
    """
    l = ac.param("l", (W.shape[feedforward],), "ones")
    return (W @ ac.diag(l), bias) if feedforward else (ac.diag(l) @ W, l * bias)


@ac.adapter
def road(W, bias, *, g=64):
    """RoAd 1: pairs of outputs (i, i + g/2) inside groups of g are rotated by theta and scaled by a, the bias too.

    Source: arXiv:2409.00119, eq. 2 to 4, read; the paper pairs neighbours, PEFT these, and PEFT turns the bias.
    """
    n, k = W.shape
    N, h = ac.divide(n, g), ac.divide(g, 2)
    theta, a = ac.param("theta", (N, h), "zeros"), ac.param("a", (N, h), "ones")
    R = ac.on_axes(ac.einsum("gh,ghij->ghij", a, ac.rotation2d(theta)), (N, 2, h), (1,))
    return R @ W, R @ bias


@ac.adapter(identity=False)
def ssf(W, bias):
    """SSF: outputs are scaled and shifted, W' = diag(g) W, bias' = g * bias + t.

    Source: arXiv:2210.08823, checked against the authors' code, not the paper's text: g from N(1, 0.02^2) and t from
    N(0, 0.02^2), so that W' differs from W at the start.
    """
    g = ac.param("g", (W.shape[0],), ac.normal(0.02, mean=1))
    t = ac.param("t", (W.shape[0],), ac.normal(0.02))
    return ac.diag(g) @ W, g * bias + t


@ac.adapter
def beft(W, bias):
    """BEFT: only the bias moves, bias' = bias + c.

    Source: arXiv:2509.15974, only the abstract could be read; formula and start as in PEFT. A layer without a bias
    gets one.
    """
    return W, bias + ac.param("c", (W.shape[0],), "zeros")


@ac.adapter
def hira(W, *, r=32):
    """HiRA: W' = W + W * (B A), elementwise.

    Source: the ICLR 2025 paper, checked against the authors' code and PEFT, not its text; there is no scale.
    """
    n, k = W.shape
    A = ac.param("A", (r, k), "kaiming_uniform")
    B = ac.param("B", (n, r), "zeros")
    return W + W * (B @ A)


@ac.adapter
def scalelora(W, *, r=4):
    """ScaleLoRA: W' = W * (B A), elementwise, B A = 1 at the start; zeros of a pruned W stay zero.

    Source: arXiv:2312.15230 (PERP), checked against the authors' code, not the paper's text: all entries of A and B
    start at 1 / sqrt(r).
    """
    n, k = W.shape
    A = ac.param("A", (r, k), r**-0.5)
    B = ac.param("B", (n, r), r**-0.5)
    return W * (B @ A)


@ac.adapter
def glora(W, bias, *, r=4):
    """GLoRA: W' = W + W * A + B, elementwise, bias' = bias + D bias + E + W C.

    A = Ad Au and B = Bd Bu of rank r, C = Cd Cu (k,), D and E scalars; Ad, Bd, Cd, D and E start at zero.
    Source: arXiv:2306.07967, checked against PEFT, not the paper's text: PEFT's default of the paper's choices. PEFT
    leaves C, D and E out where the layer has no bias, here it gets one. LyCORIS multiplies W and A as matrices.
    """
    n, k = W.shape
    A, B, C = (
        ac.param(f"{name}d", (rows, r), "zeros") @ ac.param(f"{name}u", (r, cols), "kaiming_uniform")
        for name, rows, cols in (("A", n, k), ("B", n, k), ("C", k, 1))
    )
    D, E = ac.param("D", (), 0.0), ac.param("E", (), 0.0)
    return W + W * A + B, bias + D * bias + E + W @ C[:, 0]
