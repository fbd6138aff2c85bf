"""Scales and rotations of the outputs, the bias among them."""

import adaptc as ac


@ac.adapter
def ia3(W, bias):
    """IA3: every output is scaled, W' = diag(l) W, bias' = l * bias.

    Source: arXiv:2205.05638, section 3.3, read; the bias as in PEFT's form for keys and values.
    """
    l = ac.param("l", (W.shape[0],), "ones")
    return ac.diag(l) @ W, l * bias


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
