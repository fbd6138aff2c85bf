"""The language: what an equation may say, and what its author is told otherwise."""

import inspect

import pytest
import torch
from torch import nn

import adaptc as ac
from adaptc.errors import (
    EquationError,
    HyperparameterError,
    LeafError,
    ShapeError,
)
from adaptc.methods import lora

N, K = 12, 8


def line_of(method):
    """The line marked with `# !`, else that of the method."""
    source, first = inspect.getsourcelines(method.function)
    marked = [i for i, line in enumerate(source) if line.rstrip().endswith("# !")]
    return first + (marked[0] if marked else 0)


def refused(method, error, *texts):
    """Tracing raises; the message has the texts and ends with the file and line."""
    with pytest.raises(error) as caught:
        method().trace(N, K)
    message = str(caught.value)
    assert type(caught.value) is error
    for text in texts:
        assert text in message
    assert message.endswith(f"[{__file__}:{line_of(method)}]")


# --------------------------------------------------------------------------- shapes


@ac.adapter
def wrong_product(W):
    A = ac.param("A", (5, 7), "zeros")
    return W + W @ A  # !


@ac.adapter
def wrong_sum(W):
    return W + W.T  # !


@ac.adapter
def vector_and_matrix(W):
    return W * ac.param("d", (N,), "ones")  # !


@ac.adapter
def vector_of_the_rows_length(W):
    return W + ac.param("d", (W.shape[1],), "ones")  # !


@ac.adapter
def wrong_result(W):
    return W.T


@ac.adapter
def wrong_block(W, *, b=5):
    return W @ ac.diag(
        ac.reshape(
            ac.param("d", (ac.divide(W.shape[1], b), b), "ones"),  # !
            (-1,),
        )
    )


@ac.adapter
def wrong_reshape(W):
    return W + ac.reshape(ac.param("v", (5,), "zeros"), W.shape)  # !


@ac.adapter
def wrong_einsum(W):
    return ac.einsum("nk,jk->nk", W, ac.param("A", (3, 5), "zeros"))  # !


@ac.adapter
def half_a_size(W):
    return W + ac.param("A", (W.shape[0], K / 2), "zeros") @ W  # !


@ac.adapter
def negative_size(W):
    return W + ac.param("A", (W.shape[0], -1), "zeros") @ W  # !


@ac.adapter
def wrong_start(W):
    return W + ac.param("A", (3, 4), init=W)  # !


@ac.adapter
def wrong_index(W):
    return W + W[N]  # !


@ac.adapter
def rank_above_the_matrix(W):
    U, S, Vt = ac.svd(W, 9)  # !
    return U @ ac.diag(ac.param("s", (9,), S)) @ Vt


@ac.adapter
def wrong_householder(W):
    return W @ ac.householder(ac.param("u", (K,), "ones"))  # !


@ac.adapter
def odd_butterfly(W):
    return W @ ac.butterfly(ac.param("R", (2, 4, 2, 3), "zeros"))  # !


@pytest.mark.parametrize(
    ("method", "texts"),
    [
        (wrong_product, ["(12, 8)", "(5, 7)", "8 is not 5"]),
        (wrong_sum, ["(12, 8)", "(8, 12)"]),
        (vector_and_matrix, ["(12, 8)", "(12,)", "diag or linear"]),
        (vector_of_the_rows_length, ["(12, 8)", "(8,)", "diag or linear"]),
        (wrong_result, ["'wrong_result'", "(8, 12)", "(12, 8)"]),
        (wrong_block, ["5 does not divide 8"]),
        (wrong_reshape, ["(5,)", "(12, 8)"]),
        (wrong_einsum, ["index k is 8 and 5"]),
        (half_a_size, ["4.0"]),
        (negative_size, ["-1"]),
        (wrong_start, ["'A'", "(3, 4)", "(12, 8)"]),
        (wrong_index, ["12"]),
        (rank_above_the_matrix, ["9", "(12, 8)"]),
        (wrong_householder, ["householder", "(8,)"]),
        (odd_butterfly, ["butterfly", "(2, 4, 2, 3)"]),
    ],
    ids=lambda v: v.name if hasattr(v, "name") else None,
)
def test_wrong_sizes_are_named(method, texts):
    refused(method, ShapeError, *texts)


# --------------------------------------------------------------------------- leaves


@ac.adapter
def unused(W):
    A = ac.param("A", W.shape, "zeros")  # !
    return W + 0 * A


@ac.adapter
def twice(W):
    A = ac.param("A", W.shape, "zeros")
    return W + A + ac.param("A", W.shape, "zeros")  # !


@ac.adapter
def not_a_name(W):
    return W + ac.param("A-1", W.shape, "zeros")  # !


@ac.adapter
def unseeded(W):
    return W + ac.frozen("A", W.shape, "zeros", store=False)  # !


@pytest.mark.parametrize(
    ("method", "texts"),
    [
        (unused, ["'unused'", "'A'", "never reaches"]),
        (twice, ["'A'", f"first at {__file__}"]),
        (not_a_name, ["'A-1'", "identifier"]),
        (unseeded, ["'A'", "seed"]),
    ],
)
def test_wrong_leaves_are_named(method, texts):
    refused(method, LeafError, *texts)


@pytest.mark.parametrize("name", ["W", "bias", "x", "y", "gy", "layer", "training"])
def test_reserved_leaf_names(name):
    @ac.adapter
    def reserved(W):
        return W + ac.param(name, W.shape, "zeros")  # !

    refused(reserved, LeafError, f"'{name}'")


def test_a_leaf_outside_an_equation():
    with pytest.raises(EquationError, match="'A' is declared outside.*test_language.py"):
        ac.param("A", (2, 2), "zeros")
    with pytest.raises(EquationError, match="'A' is declared outside.*test_language.py"):
        ac.frozen("A", (2, 2), "zeros")


def test_a_failed_equation_leaves_no_trace_open():
    with pytest.raises(ShapeError):
        wrong_sum().trace(N, K)
    with pytest.raises(EquationError, match="outside"):
        ac.param("A", (2, 2), "zeros")
    assert [s.name for s in lora(r=2).trace(N, K).leaves] == ["A", "B"]


# --------------------------------------------------------------------------- what an equation cannot say


@ac.adapter
def branches(W):
    A = ac.param("A", W.shape, "zeros")
    return W + A if A else W  # !


@ac.adapter
def compares(W):
    A = ac.param("A", W.shape, "zeros")
    return max(W, A)  # !


@ac.adapter
def complex_result(W):
    return ac.dft(N) @ (W + ac.param("A", W.shape, "zeros"))


@ac.adapter
def nothing(W):
    ac.param("A", W.shape, "zeros")


@ac.adapter
def a_pair(W):
    return W + ac.param("A", W.shape, "zeros"), W


@ac.adapter
def no_bias(W, bias):
    return W + ac.param("A", W.shape, "zeros")


@ac.adapter
def foreign(W):
    return W + torch.zeros(N, K)  # !


@ac.adapter
def power_of_a_tensor(W):
    return W ** ac.param("A", W.shape, "zeros")  # !


@ac.adapter
def svd_of_a_parameter(W):
    A = ac.param("A", W.shape, "zeros")
    U, S, Vt = ac.svd(W + A, 2)  # !
    return W + U @ ac.diag(S) @ Vt


@ac.adapter
def qr_of_a_parameter(W):
    Q, R = ac.qr(ac.param("A", W.shape, "zeros"))  # !
    return W + Q @ R


@ac.adapter
def pinv_of_x(x, y):
    return y + x @ ac.pinv(x) @ x @ ac.param("A", (K, N), "zeros")  # !


@ac.adapter
def starts_from_x(x, y):
    A = ac.param("A", (K, K), x.T @ x)  # !
    return y + x @ A @ ac.param("B", (K, N), "zeros")


@ac.adapter
def unknown_start(W):
    return W + ac.param("A", W.shape, "kaiming")  # !


@ac.adapter
def strange_start(W):
    return W + ac.param("A", W.shape, [1, 2])  # !


@pytest.mark.parametrize(
    ("method", "texts"),
    [
        (branches, ["(12, 8)", "truth value"]),
        (compares, ["(12, 8)", "truth value"]),
        (complex_result, ["'complex_result'", "complex", "real()"]),
        (nothing, ["'nothing'", "NoneType", "W'"]),
        (a_pair, ["'a_pair'", "2 values", "W'"]),
        (no_bias, ["'no_bias'", "1 values", "W', bias'"]),
        (foreign, ["Tensor"]),
        (power_of_a_tensor, ["exponent"]),
        (svd_of_a_parameter, ["svd", "'A'", "initial()"]),
        (qr_of_a_parameter, ["qr", "'A'", "initial()"]),
        (pinv_of_x, ["pinv", "'x'"]),
        (starts_from_x, ["'A'", "'x'"]),
        (unknown_start, ["'kaiming'", "kaiming_uniform"]),
        (strange_start, ["[1, 2]"]),
    ],
    ids=lambda v: v.name if hasattr(v, "name") else None,
)
def test_what_cannot_be_said(method, texts):
    refused(method, EquationError, *texts)


def test_a_factor_of_what_is_known_at_attach_is_allowed():
    @ac.adapter
    def residual(W, *, r=2):
        A = ac.param("A", (r, W.shape[1]), "kaiming_uniform")
        B = ac.param("B", (W.shape[0], r), "kaiming_uniform")
        U, S, Vt = ac.svd(W - ac.initial(B @ A), r)
        return W + B @ A - ac.initial(B @ A) + U @ ac.diag(S * ac.param("s", (r,), "zeros")) @ Vt

    layer = ac.AdaptedLinear(nn.Linear(K, N), residual())
    x = torch.randn(3, K)
    assert torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias), atol=1e-6)


# --------------------------------------------------------------------------- signatures


def signature(source):
    """Declare a method from text."""
    space = {"ac": ac, "__name__": "equation"}
    exec(compile(f"@ac.adapter\ndef method({source}):\n    pass", "equation.py", "exec"), space)
    return space["method"]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("W, r", "'r' is not one of W, bias, x, y.*after a \\*"),
        ("weight", "'weight' is not one of"),
        ("x, W", "in this order"),
        ("bias, W", "in this order"),
        ("", "some of them"),
        ("*, r=1", "some of them"),
        ("*W", "W"),
        ("W, **hyper", "'hyper'"),
        ("W, *, x=1", "'x' is reserved"),
    ],
)
def test_wrong_signatures(source, text):
    with pytest.raises(EquationError, match=rf"(?s){text}.*\[equation.py:1\]"):
        signature(source)


@ac.adapter
def needs_r(W, *, r, alpha=1.0):
    return W + alpha * ac.param("B", (W.shape[0], r), "zeros") @ ac.param("A", (r, W.shape[1]), "ones")


@pytest.mark.parametrize(
    ("hyper", "texts"),
    [
        ({}, ["needs r"]),
        ({"r": 2, "rank": 3}, ["'rank'", "r, alpha"]),
        ({"r": 2, "alhpa": 3}, ["'alhpa'", "did you mean 'alpha'"]),
        ({"r": torch.tensor(2)}, ["'r'", "Tensor"]),
        ({"r": 2, "alpha": lambda: 1}, ["'alpha'", "function"]),
        ({"r": 2, "alpha": {"a": 1}}, ["'alpha'", "dict"]),
    ],
)
def test_wrong_hyper_parameters(hyper, texts):
    with pytest.raises(HyperparameterError) as caught:
        needs_r(**hyper)
    for text in ("'needs_r'", *texts, f"{__file__}:{line_of(needs_r)}"):
        assert text in str(caught.value)


def test_hyper_parameters_are_not_positional():
    with pytest.raises(TypeError):
        lora(8)
