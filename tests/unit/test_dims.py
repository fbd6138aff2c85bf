"""Sizes: arithmetic is exact, comparison is strict, and a symbolic size has no value."""

import math
import operator
import pickle

import pytest
import sympy

from adaptc.errors import ShapeError, SymbolicSizeError
from adaptc.ir import build
from adaptc.ir.dims import (
    TOKENS,
    Size,
    as_dim,
    as_shape,
    product,
    quotient,
    same,
    same_shape,
    show,
    size_symbol,
    value,
)

n, k = size_symbol("n"), size_symbol("k")
N, K = Size(n), Size(k)

REFUSED = {
    "==": lambda: N == K,
    "== itself": lambda: N == N,
    "== number": lambda: N == 8,
    "number ==": lambda: operator.eq(8, N),
    "!=": lambda: N != K,
    "<": lambda: N < 8,
    "<=": lambda: N <= K,
    ">": lambda: operator.gt(8, N),
    ">=": lambda: N >= K,
    "%": lambda: K % 8,
    "number %": lambda: 8 % K,
    "truth": lambda: bool(N),
    "not": lambda: not N,
    "and": lambda: N and K,
    "int": lambda: int(N),
    "float": lambda: float(N),
    "index": lambda: operator.index(N),
    "range": lambda: range(N),
    "list index": lambda: [1, 2, 3][N],
    "iteration": lambda: list(N),
    "unpacking": lambda: [*N],
    "len": lambda: len(N),
    "round": lambda: round(N),
    "floor": lambda: math.floor(N),
    "ceil": lambda: math.ceil(N),
    "trunc": lambda: math.trunc(N),
    "min": lambda: min(N, K),
    "max": lambda: max(8, N),
    "sorted": lambda: sorted([N, K]),
    "in": lambda: N in [K],
    "any": lambda: any([N]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_symbolic_size_refuses(what):
    with pytest.raises(SymbolicSizeError, match=r"the size [nk] is symbolic"):
        REFUSED[what]()


def test_a_symbolic_size_cannot_be_hashed():
    with pytest.raises(TypeError, match="unhashable"):
        hash(N)


def test_refusals_are_also_type_errors():
    assert issubclass(SymbolicSizeError, TypeError)
    with pytest.raises(SymbolicSizeError, match=r"\[.*test_dims\.py:\d+\]"):
        bool(N)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (N + 1, n + 1),
        (1 + N, n + 1),
        (N - K, n - k),
        (10 - N, 10 - n),
        (N * K, n * k),
        (3 * N, 3 * n),
        (N / 2, n / 2),
        (N // 2, n / 2),
        (8 / N, 8 / n),
        (8 // N, 8 / n),
        (N**2, n**2),
        (N * (K + 1) - N, n * (k + 1) - n),
    ],
)
def test_arithmetic(size, expected):
    assert isinstance(size, Size)
    assert sympy.expand(size.expr - expected) == 0


def test_a_size_scales_an_expression():
    x = build.leaf("x", N, K)
    assert (N * x).factor == n
    assert (x * N).factor == n
    assert (x / N).factor == 1 / n


@pytest.mark.parametrize("wrong", ["3", 3.0, None, True, -1, [3]])
def test_what_is_no_size(wrong):
    with pytest.raises(ShapeError, match="a size must"):
        as_dim(wrong)


def test_sizes_as_the_ir_holds_them():
    assert as_dim(N) is n
    assert as_dim(sympy.Integer(4)) == 4
    assert type(as_dim(sympy.Integer(4))) is int
    assert as_dim(Size(n - n + 6)) == 6
    assert as_shape(5) == (5,)
    assert as_shape((N, 5)) == (n, 5)
    assert as_shape([5]) == (5,)


def test_strict_equality():
    assert same(n * k, k * n)
    assert same(n * (k + 1), n * k + n)
    assert not same(n, k)
    assert not same(n, 8)
    assert not same(8, 9)
    assert same_shape((n, 3), (n, 3))
    assert not same_shape((n, 3), (3, n))
    assert not same_shape((n,), (n, 1))
    assert size_symbol("n") == n


def test_products_and_quotients():
    assert product((2, 3, 4)) == 24
    assert product(()) == 1
    assert same(product((n, 2, k)), 2 * n * k)
    assert quotient(12, 4) == 3
    assert same(quotient(n * k, k), n)
    assert same(quotient(n, 4), n / 4)
    with pytest.raises(ShapeError, match="5 does not divide 12"):
        quotient(12, 5)
    with pytest.raises(ShapeError, match="0 does not divide 12"):
        quotient(12, 0)


def test_values_and_text():
    assert value(n * k + 1, {n: 3, k: 4}) == 13
    assert value(7, {}) == 7
    assert value(TOKENS, {TOKENS: 5}) == 5
    assert show((n, 16)) == "(n, 16)"
    assert show((n,)) == "(n,)"
    assert show(()) == "()"
    assert repr(N + 1) == "n + 1"


def test_symbols_survive_pickling():
    assert pickle.loads(pickle.dumps(n)) == n
    assert same(pickle.loads(pickle.dumps(TOKENS)), TOKENS)
