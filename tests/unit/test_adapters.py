"""Methods and adapters as values, and the sizes that an equation sees."""

import copy
import pickle

import pytest
import sympy

import adaptc as ac
from adaptc.errors import ShapeError, SymbolicSizeError
from adaptc.ir.dims import Size, size_symbol
from adaptc.method import symbols
from adaptc.methods import catalogue, lora

N, K = 12, 8


def test_adapters_are_equal_hashable_printable_and_picklable():
    a = lora(r=4, alpha=8.0)
    assert a == lora(r=4, alpha=8.0)
    assert len({a, lora(r=4, alpha=8.0), lora(r=5, alpha=8.0)}) == 2
    assert repr(a) == "lora(r=4, alpha=8.0)"
    assert repr(lora) == "lora(r=8, alpha=16.0)"
    for other in (pickle.loads(pickle.dumps(a)), copy.deepcopy(a)):
        assert other == a
        assert other.method is lora
        assert other.trace(N, K) is a.trace(N, K)


def test_lists_become_tuples():
    @ac.adapter
    def listed(W, *, sizes=(1, 2)):
        return W + sum(sizes) * ac.param("A", W.shape, "zeros")

    assert listed(sizes=[3, 4]) == listed(sizes=(3, 4))
    assert hash(listed(sizes=[[3], 4]))


def test_what_was_traced_before_changes_nothing():
    with pytest.raises(ShapeError):
        lora(r=3.0).trace(N, K)
    lora(r=3).trace(N, K)
    with pytest.raises(ShapeError):
        lora(r=3.0).trace(N, K)


@pytest.mark.parametrize("name", catalogue())
def test_every_method_is_importable_pickles_and_says_its_source(name):
    method = catalogue()[name]
    assert pickle.loads(pickle.dumps(method)) is method
    assert "Source: " in method.__doc__
    assert name == name.lower()


def test_identity_is_a_claim_of_the_method():
    @ac.adapter(identity=False)
    def moved(W):
        return 2 * W + ac.param("A", W.shape, "zeros")

    assert not moved.identity
    assert lora.identity


# --------------------------------------------------------------------------- sizes

n, k = Size(size_symbol("n")), Size(size_symbol("k"))
ASKS = {
    "truth": lambda: bool(n),
    "equal": lambda: n == 3,
    "equal to itself": lambda: n == n,  # noqa: PLR0124
    "unequal": lambda: n != k,
    "less": lambda: n < k,
    "at least": lambda: n <= 3,
    "int": lambda: int(n),
    "float": lambda: float(n),
    "range": lambda: range(n),
    "index": lambda: [1, 2][n],
    "iteration": lambda: list(n),
    "length": lambda: len(n),
    "rest": lambda: n % 2,
    "rest of a number": lambda: 7 % n,
    "minimum": lambda: min(n, k),
    "round": lambda: round(n),
    "member": lambda: 3 in [n],
    "hash": lambda: {n: 1},
    "factor_pair": lambda: ac.factor_pair(n),
}


@pytest.mark.parametrize("ask", ASKS)
def test_a_symbolic_size_has_no_value(ask):
    error = TypeError if ask == "hash" else SymbolicSizeError
    with pytest.raises(error, match="unhashable" if ask == "hash" else "(?s)symbolic.*test_adapters.py"):
        ASKS[ask]()


def test_arithmetic_of_sizes():
    a, b = symbols()
    assert (n + 1 - k).expr == a + 1 - b
    assert (2 * n * k / k).expr == 2 * a
    assert (n // 2).expr == a / 2
    assert (1 - n).expr == 1 - a
    assert (n**2).expr == a**2
    assert ac.divide(n, 4).expr == a / 4
    assert ac.divide(n * k, k).expr == a
    assert ac.divide(12, 4) == 3


@pytest.mark.parametrize(("size", "by"), [(7, 2), (3, 4), (5, 0)])
def test_a_division_that_is_not_whole(size, by):
    with pytest.raises(ShapeError, match=rf"{by} does not divide {size}.*test_adapters.py"):
        ac.divide(size, by)


@pytest.mark.parametrize("size", [1, 2, 7, 12, 36, 48, 97, 768, 4096])
def test_factor_pair(size):
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    for near in (None, 1, 2, 3, 5, 8, 100):
        a, b = ac.factor_pair(size, near)
        assert a * b == size
        assert a <= b
        if near in divisors:
            assert near in (a, b)
        else:
            bound = size**0.5 if near is None else min(near, size**0.5)
            assert a == max(d for d in divisors if d <= bound)


def test_the_formula_has_symbolic_sizes_where_the_equation_allows_them():
    assert lora(r=4).formula == "W' = W + 4 (B @ A)"
    weight = lora(r=4).to_sympy()
    assert weight.shape == symbols()
    assert {s.name for s in weight.free_symbols} >= {"W", "A", "B"}

    @ac.adapter
    def numbers(W):
        rows = sum(1 for _ in range(W.shape[0]))
        return W + rows * ac.param("A", W.shape, "zeros")

    assert "at n = 64, k = 64" in numbers().formula
    assert numbers().to_sympy().shape == (64, 64)


@pytest.mark.parametrize("name", catalogue())
def test_the_traced_shapes_are_the_symbolic_ones(name):
    """Symbolic sizes and then numbers give what numbers give at once."""
    adapter = catalogue()[name]()
    try:
        open_equation = adapter.trace(*symbols())
    except SymbolicSizeError:
        return
    a, b = symbols()
    closed = adapter.trace(768, 512)
    for mine, theirs in zip(open_equation.leaves, closed.leaves, strict=True):
        sizes = [sympy.sympify(d).subs({a: 768, b: 512}) for d in mine.leaf.dims]
        assert sizes == list(theirs.leaf.dims), mine.name
