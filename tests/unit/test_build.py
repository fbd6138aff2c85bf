"""Smart constructors: each identity gives the canonical node, and none changes a value."""

import hypothesis.strategies as st
import pytest
import sympy
import torch
from hypothesis import given, settings
from oracle import assert_close, evaluate
from strategies import draw_values

import adaptc as ac
from adaptc.errors import EquationError, ShapeError
from adaptc.ir import algebra, build
from adaptc.ir.expand import flatten
from adaptc.ir.expr import postorder
from adaptc.ir.functions import ARGS
from adaptc.ir.prims import INDEX, Add, Broadcast, Constant, Contract, Map, Reduce, Reshape, Scale, Take

A, B, S = build.leaf("A", 4, 3), build.leaf("B", 4, 3), build.leaf("S", 4, 4)
v, s, square = build.leaf("v", 3), build.leaf("s"), build.leaf("T", 3, 3)
i, j = INDEX[:2]
nothing = build.zeros((4, 3))

IDENTITIES = {
    "2 (3 x) = 6 x": lambda: (build.scale(2, build.scale(3, A)), Scale(6.0, A)),
    "1 x = x": lambda: (build.scale(1, A), A),
    "(1/2) (2 x) = x": lambda: (build.scale(0.5, build.scale(2, A)), A),
    "0 x = 0": lambda: (build.scale(0, A), nothing),
    "x + x = 2 x": lambda: (build.add(A, A), Scale(2.0, A)),
    "x - x = 0": lambda: (build.add(A, build.scale(-1, A)), nothing),
    "x + 0 = x": lambda: (build.add(A, nothing), A),
    "(x + y) + x = 2 x + y": lambda: (build.add(build.add(A, B), A), Add((Scale(2.0, A), B))),
    "x + (y - x) = y": lambda: (A + (B - A), B),
    "reshape twice": lambda: (build.reshape(build.reshape(A, (12,)), (2, 6)), Reshape(A, (2, 6))),
    "reshape back": lambda: (build.reshape(build.reshape(A, (12,)), (4, 3)), A),
    "reshape of a number times x": lambda: (build.reshape(2 * A, (12,)), Scale(2.0, Reshape(A, (12,)))),
    "reshape of ones": lambda: (build.reshape(build.ones((4, 3)), (12,)), build.ones((12,))),
    "take everything": lambda: (build.take(A, (i, j), (4, 3)), A),
    "take of a number times x": lambda: (
        build.take(2 * A, (i, j + 1), (4, 2)),
        Scale(2.0, Take(A, (i, j + 1), (4, 2))),
    ),
    "put everywhere": lambda: (build.put(A, (i, j), (4, 3)), A),
    "take from 0": lambda: (build.take(nothing, (i, j + 1), (4, 2)), build.zeros((4, 2))),
    "broadcast to itself": lambda: (build.broadcast(A, (4, 3), (0, 1)), A),
    "broadcast of ones": lambda: (build.broadcast(build.ones(()), (4, 3), ()), build.ones((4, 3))),
    "sum along nothing": lambda: (build.reduce_sum(A, []), A),
    "sum of a number times x": lambda: (build.reduce_sum(2 * A, [0]), Scale(2.0, Reduce("sum", A, (0,)))),
    "letters do not matter": lambda: (build.contract("xy,yz->xz", A, square), Contract("ab,bc->ac", (A, square))),
    "spaces do not matter": lambda: (build.contract("a b, c b -> a c", A, B), build.contract("ab,cb->ac", A, B)),
    "numbers leave a product": lambda: (
        build.contract("ab,cb->ac", 2 * A, 3 * B),
        Scale(6.0, Contract("ab,cb->ac", (A, B))),
    ),
    "product with I": lambda: (build.contract("ab,bc->ac", A, build.eye(3)), A),
    "product with I from the left": lambda: (build.contract("ab,bc->ac", build.eye(4), A), A),
    "product with I transposed": lambda: (build.contract("ba,bc->ca", build.eye(4), A), transposed(A)),
    "product with ones": lambda: (build.contract("ab,ab->ab", A, build.ones((4, 3))), A),
    "product with 0": lambda: (build.contract("ab,cb->ac", A, build.scale(0, B)), build.zeros((4, 4))),
    "an index of one operand": lambda: (
        build.contract("ab,cb->b", A, B),
        Contract("a,a->a", (Reduce("sum", A, (0,)), Reduce("sum", B, (0,)))),
    ),
    "an operand as it is": lambda: (build.contract("ab->ab", A), A),
    "a diagonal": lambda: (build.contract("aa->a", S), Take(S, (i, i), (4,))),
    "a trace": lambda: (build.contract("aa->", S), Reduce("sum", Take(S, (i, i), (4,)), (0,))),
    "transpose twice": lambda: (flatten(transposed(transposed(A))), A),
    "contraction of contractions": lambda: (
        flatten(build.contract("ab,bc->ac", A, build.contract("ab,cb->ac", square, square))),
        Contract("ab,bc,dc->ad", (A, square, square)),
    ),
    "conj of real": lambda: (build.conj(A), A),
    "real of real": lambda: (build.real(A), A),
    "detach twice": lambda: (build.detach(build.detach(A)), build.detach(A)),
    "detach of a constant": lambda: (build.detach(build.eye(3)), build.eye(3)),
    "the function a0": lambda: (build.apply(ARGS[0], A), A),
    "a constant function": lambda: (build.apply(sympy.Integer(3), A), Scale(3.0, build.ones((4, 3)))),
    "a function of its second argument": lambda: (build.apply(sympy.sin(ARGS[1]), A, B), Map(sympy.sin(ARGS[0]), (B,))),
    "a function of a scalar among matrices": lambda: (
        build.apply(sympy.sin(ARGS[1]), A, s),
        Broadcast(Map(sympy.sin(ARGS[0]), (s,)), (4, 3), ()),
    ),
    "x ** 2": lambda: (A**2, build.times(A, A)),
    "x ** 1": lambda: (A**1, A),
    "x / 2": lambda: (A / 2, Scale(0.5, A)),
    "sum of a list": lambda: (sum([A, B]), A + B),
    "-x": lambda: (-A, Scale(-1.0, A)),
}


def transposed(x):
    return build.contract("ab->ba", x)


@pytest.mark.parametrize("name", IDENTITIES)
def test_identity(name):
    found, expected = IDENTITIES[name]()
    assert found is expected, f"{found!r} is not {expected!r}"


@st.composite
def einsums(draw):
    """A random einsum of leaves, ones, identities and zeros, scaled."""
    sizes = dict(zip("abcd", draw(st.permutations([1, 2, 3, 3])), strict=True))
    operands, terms = [], []
    for place in range(draw(st.integers(1, 3))):
        letters = draw(st.text("abcd", min_size=0, max_size=3))
        shape = tuple(sizes[c] for c in letters)
        choices = [build.leaf(f"o{place}", *shape)] * 3 + [build.ones(shape)]
        choices += [build.eye(shape[0])] * 2 if len(shape) == 2 and shape[0] == shape[1] else []
        operands.append(build.scale(draw(st.sampled_from([1, 1, -2])), draw(st.sampled_from(choices))))
        terms.append(letters)
    out = draw(st.permutations(sorted(set("".join(terms)))))
    return f"{','.join(terms)}->{''.join(out[: draw(st.integers(0, len(out)))])}", operands


def assert_canonical(root):
    """What `Contract` promises: no index twice in an operand, every summed one in two operands or more."""
    for e in postorder(root):
        if isinstance(e, Contract):
            terms, out = e.terms
            assert all(len(set(t)) == len(t) for t in terms), e.spec
            assert all(sum(c in t for t in terms) > 1 for c in set("".join(terms)) - set(out)), e.spec


@settings(max_examples=400)
@given(einsums())
def test_contract_is_einsum(drawn):
    spec, operands = drawn
    values = draw_values(*operands)
    expected = torch.einsum(spec, *(evaluate(op, dict(values)) for op in operands))
    node = build.contract(spec, *operands)
    assert_close(evaluate(node, dict(values)), expected, spec)
    assert_close(evaluate(flatten(node), dict(values)), expected, spec)
    assert_canonical(node)
    assert_canonical(flatten(node))


def test_ones_summed_against_ones_count():
    values = draw_values(v)
    node = build.contract("a,a,b->b", build.ones((4,)), build.ones((4,)), v)
    assert_close(evaluate(node, dict(values)), 4 * values[v])
    assert_canonical(node)


@pytest.mark.parametrize(
    ("spec", "operands", "message"),
    [
        ("ij,jk", (A, B), "write every index and the result"),
        ("...j->...", (A,), "write every index"),
        ("ij,jk->ik", (A,), "names 2 operands, got 1"),
        ("ij->ik", (A,), "each index of the result"),
        ("ij->ii", (A,), "each index of the result"),
        ("ijk->i", (A,), "names 3 axes, got"),
        ("ij,jk->ik", (A, B), "index j is 3 and 4"),
        ("ii->i", (A,), "index i is 4 and 3"),
    ],
)
def test_wrong_einsums(spec, operands, message):
    with pytest.raises(ShapeError, match=message):
        build.contract(spec, *operands)


TORCH = {
    "norm rows": (lambda M: ac.norm(M, axis=1), lambda M: M.norm(dim=1)),
    "norm": (lambda M: ac.norm(M), lambda M: M.norm()),
    "sum": (lambda M: ac.sum(M), lambda M: M.sum()),
    "sum columns": (lambda M: ac.sum(M, axis=0), lambda M: M.sum(0)),
    "mean": (lambda M: ac.mean(M, axis=-1), lambda M: M.mean(-1)),
    "mean of all": (lambda M: ac.mean(M), lambda M: M.mean()),
    "max": (lambda M: ac.max(M, axis=0), lambda M: M.amax(0)),
    "max of all": (lambda M: ac.max(M), lambda M: M.amax()),
    "softmax rows": (lambda M: ac.softmax(M, axis=1), lambda M: M.softmax(1)),
    "softmax columns": (lambda M: ac.softmax(9 * M, axis=0), lambda M: (9 * M).softmax(0)),
    "clamp": (lambda M: ac.clamp(M, -0.2, 0.3), lambda M: M.clamp(-0.2, 0.3)),
    "maximum": (lambda M: ac.maximum(M, 0.1), lambda M: M.clamp(min=0.1)),
    "tril": (lambda M: ac.tril(M, 1), lambda M: M.tril(1)),
    "triu": (lambda M: ac.triu(M, -1), lambda M: M.triu(-1)),
    "less": (lambda M: M < 0.1, lambda M: (M < 0.1).double()),
    "more": (lambda M: M > 0.1, lambda M: (M > 0.1).double()),
    "tile": (lambda M: ac.tile(M, (7, 2)), lambda M: M.repeat(2, 1)[:7, :2]),
    "hstack": (lambda M: ac.hstack([M, 2 * M, M[:, :1]]), lambda M: torch.hstack([M, 2 * M, M[:, :1]])),
    "vstack": (lambda M: ac.vstack([M, M[:2]]), lambda M: torch.vstack([M, M[:2]])),
    "hstack vectors": (lambda M: ac.hstack([M[0], M[1]]), lambda M: torch.hstack([M[0], M[1]])),
    "take": (lambda M: ac.take(M, [3, 0, 3], 0), lambda M: M[[3, 0, 3]]),
    "take columns": (lambda M: ac.take(M, torch.tensor([2, 2]), 1), lambda M: M[:, [2, 2]]),
    "linear": (lambda M: ac.linear(M, M[:2], M[0, :2]), lambda M: M @ M[:2].T + M[0, :2]),
    "power": (lambda M: (2 + M) ** -1.5, lambda M: (2 + M) ** -1.5),
    "quotient": (lambda M: 2 / (M + 3), lambda M: 2 / (M + 3)),
    "quotient of two": (lambda M: M / (M + 3), lambda M: M / (M + 3)),
    "number first": (lambda M: 1 - M, lambda M: 1 - M),
    "scalar": (lambda M: M[0, 0] * M + M[1, 1], lambda M: M[0, 0] * M + M[1, 1]),
    "matrix vector": (lambda M: M @ M[0], lambda M: M @ M[0]),
    "vector matrix": (lambda M: M[:, 0] @ M, lambda M: M[:, 0] @ M),
    "inner": (lambda M: M[0] @ M[1], lambda M: M[0] @ M[1]),
}


@pytest.mark.parametrize("name", TORCH)
def test_algebra_means_what_torch_means(name):
    ours, torchs = TORCH[name]
    values = draw_values(A)
    found, expected = ours(A), torchs(values[A])
    assert found.dims == tuple(expected.shape)
    assert_close(evaluate(found, dict(values)), expected, name)


entry = st.one_of(
    st.integers(-3, 2),
    st.just(Ellipsis),
    st.builds(slice, st.none() | st.integers(-5, 5), st.none() | st.integers(-5, 5), st.none() | st.integers(1, 3)),
)


@settings(max_examples=200)
@given(st.lists(entry, max_size=3))
def test_indexing_is_numpys(items):
    if items.count(Ellipsis) > 1:
        items = [e for e in items if e is not Ellipsis]
    cube, at = build.leaf("cube", 3, 4, 3), tuple(items)
    values = draw_values(cube)
    expected = values[cube].numpy()[at]
    found = cube[at]
    assert found.dims == expected.shape
    assert_close(evaluate(found, dict(values)), expected, str(at))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: A[4], "index 4 is outside an axis of size 4"),
        (lambda: A[:, -4], "index -4 is outside an axis of size 3"),
        (lambda: A[0, 0, 0], "3 indices for"),
        (lambda: ac.take(A, [0, 4], 0), "index 4 is outside an axis of size 4"),
        (lambda: ac.take(A, [-1], 0), "index -1"),
        (lambda: ac.take(A, A, 0), "vector of whole numbers"),
        (lambda: ac.hstack([A, S[:3]]), r"\(4, 3\) and \(3, 4\)"),
        (lambda: ac.tile(A, (4,)), "axes differ"),
        (lambda: ac.norm(A, axis=2), "axis 2"),
        (lambda: ac.linear(A, B, v), r"\(3,\) for rows of 4"),
        (lambda: ac.reshape(A, (5, 2)), "12 entries and 10"),
    ],
)
def test_wrong_algebra(wrong, message):
    with pytest.raises(ShapeError, match=message):
        wrong()


def test_an_exponent_is_a_number():
    with pytest.raises(EquationError, match="exp"):
        A**B


def test_sums_of_three_kinds_stay_flat():
    total = algebra.add(algebra.add(A, 2 * B), Constant(sympy.Integer(1), (4, 3)))
    assert isinstance(total, Add)
    assert len(total.terms) == 3
    assert not any(isinstance(t, Add) for t in total.terms)
