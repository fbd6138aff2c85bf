"""Derivatives: elementwise functions against torch, sharing, stops, and chains through complex numbers."""

import pytest
import torch
from oracle import EPS, assert_close, autograd, evaluate
from strategies import ARITY, ROWS, draw_values, leaves

import adaptc as ac
from adaptc.ir import build
from adaptc.ir.dims import TOKENS
from adaptc.ir.expand import expand, primitive
from adaptc.ir.functions import ELEMENTWISE
from adaptc.ir.prims import Add, Leaf, Map, Solve, Transform
from adaptc.ir.vjp import vjp

A, B, v = build.leaf("A", 4, 3), build.leaf("B", 4, 3), build.leaf("v", 4)
z = Leaf("z", (4, 3), "param", "complex")
POINTS = torch.tensor([-1000.0, -3.0, -0.5, 0.0, 0.5, 0.5, 2.5, 7.0, 1000.0], dtype=torch.float64)
DOMAIN = {"log": POINTS > 0, "sqrt": POINTS > 0, "exp": POINTS < 100}
TORCH = {
    **{n: getattr(torch, n) for n in ("exp", "log", "sqrt", "abs", "sin", "cos", "tanh", "sigmoid", "relu", "round")},
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "less": lambda a, b: (a < b).double(),
}


def gradients(root, wrt=None, seed=0):
    """Ours and torch's for every leaf, with a cotangent of the root's kind."""
    gy = Leaf("gy", root.dims, "gradient", root.kind)
    wrt = wrt or [leaf for leaf in leaves(root) if leaf.kind != "integer"]
    values = draw_values(root, gy, seed=seed)
    inputs = [values[leaf].requires_grad_() for leaf in wrt]
    expected = autograd(evaluate(root, dict(values), ROWS), values[gy], inputs)
    found = vjp(root, gy, wrt)
    ours = [evaluate(found[leaf], dict(values), ROWS) if leaf in found else None for leaf in wrt]
    return ours, expected


def agree(root, wrt=None):
    """The derivatives of a root are torch's."""
    assert primitive(root)
    for seed in range(3):
        for ours, expected in zip(*gradients(root, wrt, seed), strict=True):
            assert ours is not None
            assert ours.dtype == expected.dtype
            assert_close(ours, expected)


def test_every_function_is_compared():
    assert set(TORCH) == set(ELEMENTWISE)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_functions_and_slopes_are_torchs(name):
    """At large, small and equal arguments and at zero, where finite in torch."""
    points = POINTS[DOMAIN.get(name, slice(None))]
    a, b = (build.leaf(s, len(points)) for s in "ab")
    values = {a: points.clone().requires_grad_(), b: points.flip(0).clone().requires_grad_()}
    args = (a, b)[: ARITY[name]]
    root = Map(ELEMENTWISE[name], args)
    expected = TORCH[name](*(values[t] for t in args))
    found = evaluate(root, dict(values))
    assert torch.allclose(found, expected, rtol=1e-14, atol=0)
    slopes = autograd(expected, torch.ones_like(points), [values[t] for t in args])
    ours = vjp(root, build.ones((len(points),)), args)
    for t, slope in zip(args, slopes, strict=True):
        mine = evaluate(ours[t], dict(values)) if t in ours else torch.zeros_like(slope)
        assert torch.allclose(mine, slope, rtol=1e-13, atol=4 * EPS), f"{mine} is not {slope}"


def test_minimum_and_maximum_share_a_tie():
    for name in ("maximum", "minimum"):
        a, b = build.leaf("a", 2), build.leaf("b", 2)
        found = vjp(Map(ELEMENTWISE[name], (a, b)), build.ones((2,)), [a, b])
        values = {a: torch.zeros(2, dtype=torch.float64), b: torch.zeros(2, dtype=torch.float64)}
        assert all((evaluate(found[t], dict(values)) == 0.5).all() for t in (a, b))


def test_norm_of_nothing_has_no_slope():
    root = ac.norm(A, axis=1)
    values = {A: torch.zeros(4, 3, dtype=torch.float64)}
    found = vjp(root, build.ones((4,)), [A])[A]
    assert not evaluate(found, values).any()


def test_softmax_of_large_numbers():
    root = ac.softmax(1000 * A, axis=1)
    for ours, expected in zip(*gradients(root), strict=True):
        assert torch.isfinite(ours).all()
        assert_close(ours, expected)


def test_shared_parts_collect_all_their_gradients():
    h = build.contract("ij,kj->ik", A, B)
    agree(build.contract("ij,ij->i", h, h) + build.contract("ij->i", build.times(h, build.times(h, h))))
    agree(A + A * B + B * A * A)


def test_an_operand_twice():
    agree(build.contract("ij,kj->ik", A, A))
    agree(build.contract("ij,ij,ij->j", A, A, A))


def test_what_does_not_reach_the_root_has_no_gradient():
    gy = Leaf("gy", (4, 3), "gradient")
    assert vjp(A, gy, [A, B]) == {A: gy}
    assert vjp(build.detach(A) * B, gy, [A, B]).keys() == {B}
    assert vjp(build.apply(ELEMENTWISE["round"], A), gy, [A]) == {}


def test_straight_through():
    """soft + detach(hard - soft) is hard forward and soft backward."""
    soft = build.apply(ELEMENTWISE["sigmoid"], A)
    root = soft + build.detach(build.apply(ELEMENTWISE["round"], soft) - soft)
    gy = Leaf("gy", (4, 3), "gradient")
    values = draw_values(root, gy)
    assert_close(evaluate(root, dict(values)), values[A].sigmoid().round())
    assert vjp(root, gy, [A])[A] is vjp(soft, gy, [A])[A]


def test_gradients_of_inner_nodes():
    h = build.contract("ij,kj->ik", A, B)
    root, gy = build.apply(ELEMENTWISE["tanh"], h), Leaf("gy", (4, 4), "gradient")
    found = vjp(root, gy, [h])[h]
    values = draw_values(root, gy)
    expected = values[gy] * (1 - (values[A] @ values[B].T).tanh() ** 2)
    assert_close(evaluate(found, dict(values)), expected)


def test_gradients_are_in_the_forwards_own_terms():
    h = build.apply(ELEMENTWISE["sigmoid"], A)
    found = vjp(h, Leaf("gy", (4, 3), "gradient"), [A])[A]
    assert {e.name for e in leaves(found)} == {"A", "gy"}


def test_a_norm_is_differentiated_twice():
    gy, again = Leaf("gy", (4,), "gradient"), Leaf("again", (4, 3), "gradient")
    first = vjp(ac.norm(A, axis=1), gy, [A])[A]
    second = vjp(first, again, [A])[A]
    values = draw_values(second)
    M = values[A].clone().requires_grad_()
    length = (M * M).sum(1, keepdim=True).sqrt()
    assert_close(evaluate(first, dict(values)), values[gy][:, None] * M / length)
    (expected,) = autograd(values[gy][:, None] * M / length, values[again], [M])
    assert_close(evaluate(second, dict(values)), expected)


def test_a_norm_hides_no_nan():
    first = vjp(ac.norm(A, axis=1), build.ones((4,)), [A])[A]
    M = torch.ones(4, 3, dtype=torch.float64)
    M[:, 0] = torch.nan
    assert evaluate(first, {A: M}).isnan().all()


FAR = 9 * build.eye(4) + Transform("fft", build.contract("ij,kj->ik", A, B), 0)
COMPLEX = {
    "fft": Transform("fft", A, 0),
    "ifft of fft": Transform("ifft", Transform("fft", A, 0), 0),
    "real part": build.real(Transform("fft", A, 1)),
    "convolution": build.real(
        Transform("ifft", build.contract("ij,i->ij", Transform("fft", A, 0), Transform("fft", v, 0)), 0)
    ),
    "product with itself": build.contract("ij,ij->i", Transform("fft", A, 0), Transform("fft", A, 0)),
    "complex leaf": build.contract("ij,kj->ik", z, A),
    "square of a complex leaf": build.contract("ij,kj->ik", z, z),
    "conjugate": build.contract("ij,kj->ik", z, build.conj(z)),
    "absolute square": build.real(build.contract("ij,ij->", z, build.conj(z))),
    "sum with a real": Add((z, A)),
    "scaled": 3 * Transform("ifft", z, 1),
    "through a reshape": build.real(Transform("fft", build.reshape(Transform("fft", A, 0), (2, 6)), 1)),
    "through a gather": build.real(Transform("fft", A, 0)[1:3]),
    "solve": Solve(FAR, Transform("fft", A, 0)),
    "real part of a solve": build.real(Solve(FAR, Transform("fft", A, 0))),
    "real function of a real part": build.apply(ELEMENTWISE["tanh"], build.real(Transform("fft", A, 0))),
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_chains(name):
    agree(COMPLEX[name])


def test_real_leaves_have_real_gradients():
    gy = Leaf("gy", (4, 3), "gradient", "complex")
    assert vjp(Transform("fft", A, 0), gy, [A])[A].kind == "real"


def test_complex_chains_of_operators():
    x = build.leaf("x", TOKENS, 4, role="token")
    spectrum = ac.idft(4) @ (build.leaf("S", 4, 4) @ ac.dft(4))
    root = ac.linear(x, ac.real(ac.real(spectrum) @ ac.dft(4)) + ac.real(spectrum))
    agree(expand(root, lambda site: "apply" if "apply" in site.options else site.options[0]))
    agree(expand(root, lambda site: "dense"))
