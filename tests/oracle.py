"""What things mean, written a second time: numpy definitions, exact arithmetic, autograd.

Nothing here uses the IR's own definitions but `exact`, which proves rules entry by entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from random import Random
from typing import Any

import numpy as np
import scipy.linalg
import sympy
import torch

from adaptc.ir.expr import Expr
from adaptc.ir.operator import AbstractOperator
from adaptc.ir.prims import INDEX
from adaptc.runtime.reference import Evaluator

EPS = torch.finfo(torch.float64).eps
TIGHT = 1e6 * EPS  # well-conditioned float64: 2e-10 of the size of the result


def distance(a: Any, b: Any) -> float:
    """|a - b| against the larger of |b| and 1."""
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    assert a.shape == b.shape, f"{tuple(a.shape)} is not {tuple(b.shape)}"
    if not bool(torch.isfinite(a).all()):
        return float("inf")
    return float((a - b).detach().norm() / b.detach().norm().clamp(min=1))


def assert_close(a: Any, b: Any, what: str = "") -> None:
    """Equal up to rounding in float64."""
    assert distance(a, b) < TIGHT, f"{what}: off by {distance(a, b):.1e}"


def evaluate(root: Expr, values: dict[Expr, torch.Tensor], rows: int = 0) -> torch.Tensor:
    """The value of an expression by the reference backend, in float64."""
    return Evaluator(values, torch.float64, rows=rows)(root)


def autograd(value: torch.Tensor, gy: torch.Tensor, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Gradients of <value, gy> by torch, zeros where there are none."""
    if not value.requires_grad:
        return [torch.zeros_like(t) for t in inputs]
    found = torch.autograd.grad(value, inputs, gy, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True)]


# --------------------------------------------------------------------------- operators


def _householder(U: Any) -> Any:
    k, r = U.shape
    H = np.eye(k)
    for i in range(r):
        H = H - 2 * np.outer(H @ U[:, i], U[:, i]) / np.dot(U[:, i], U[:, i])
    return H


def _on_axes(T: Any, dims: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    sizes = [dims[a] for a in axes]
    others = [a for a in range(len(dims)) if a not in axes]
    places = list(product(*map(range, dims)))
    M = np.zeros((len(places), len(places)))
    for (r, row), (c, col) in product(enumerate(places), enumerate(places)):
        if all(row[a] == col[a] for a in others):
            block = T if T.ndim == 2 else T[tuple(row[a] for a in others)]
            i, j = (np.ravel_multi_index([at[a] for a in axes], sizes) for at in (row, col))
            M[r, c] = block[i, j]
    return M


def _givens(i: Any, j: Any, theta: Any, k: int) -> Any:
    G = np.eye(k)
    for p, q, t in zip(i, j, theta, strict=True):
        plane = np.eye(k)
        plane[p, p] = plane[q, q] = np.cos(t)
        plane[p, q], plane[q, p] = -np.sin(t), np.sin(t)
        G = G @ plane
    return G


def _skew(v: Any) -> Any:
    b = round((1 + np.sqrt(1 + 8 * len(v))) / 2)
    S, entries = np.zeros((b, b)), iter(v)
    for i in range(b):
        for j in range(i + 1, b):
            S[i, j] = next(entries)
            S[j, i] = -S[i, j]
    return S


def _cayley(X: Any) -> Any:
    S, one = (X - X.T) / 2, np.eye(len(X))
    return np.linalg.solve((one + S).T, (one - S).T).T


def _butterfly(R: Any) -> Any:
    stages, blocks, b, _ = R.shape
    k, half = blocks * b, b // 2
    M = np.eye(k)
    for i in range(stages):
        index: list[int] = []
        for group in np.split(np.arange(k), k // (b * 2**i)):
            parts = group.reshape(-1, half)
            index += [*parts[0::2].ravel(), *parts[1::2].ravel()]
        P = np.eye(k)[index]
        M = P @ scipy.linalg.block_diag(*R[i]) @ P.T @ M
    return M


def _toeplitz(t: Any, size: tuple[int, int]) -> Any:
    n, k = size
    return np.array([[t[i - j + k - 1] for j in range(k)] for i in range(n)])


def _scatter(v: Any, index: tuple[Any, ...], size: tuple[int, ...]) -> Any:
    M = np.zeros(size)
    for t, place in enumerate(zip(*index, strict=True)):
        M[place] += v[t]
    return M


def _permutation(index: Any) -> Any:
    P = np.zeros((len(index), len(index)))
    for i, j in enumerate(index):
        P[i, j] = 1
    return P


def _tensor_train(cores: tuple[Any, ...]) -> Any:
    p, q = [c.shape[1] for c in cores], [c.shape[2] for c in cores]
    M = np.zeros((np.prod(p), np.prod(q)))
    for row, col in product(np.ndindex(*p), np.ndindex(*q)):
        chain = np.eye(1)
        for core, a, b in zip(cores, row, col, strict=True):
            chain = chain @ core[:, a, b, :]
        M[np.ravel_multi_index(row, p), np.ravel_multi_index(col, q)] = chain[0, 0]
    return M


def _orthonormal(P: Any) -> Any:
    Q = np.zeros_like(P)
    for j in range(P.shape[1]):
        column = P[:, j]
        for _ in range(2):  # once more for accuracy
            column = column - Q @ (Q.T @ column)
        Q[:, j] = column / np.linalg.norm(column)
    return Q


def _rotation2d(t: Any) -> Any:
    return np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])


DEFINITIONS: dict[str, Callable[..., Any]] = {
    "block_diag": lambda b: scipy.linalg.block_diag(*(b[0] if b[0].ndim == 3 else b)),
    "blocks": lambda M: np.block([list(row) for row in M]),
    "butterfly": _butterfly,
    "cayley": _cayley,
    "circulant": scipy.linalg.circulant,
    "dft": lambda n: np.fft.fft(np.eye(n), axis=0),
    "diag": np.diag,
    "givens": _givens,
    "hadamard_transform": lambda n: scipy.linalg.hadamard(n).astype(float),
    "householder": _householder,
    "identity": np.eye,
    "idft": lambda n: np.fft.ifft(np.eye(n), axis=0),
    "inverse": lambda M: np.linalg.solve(M, np.eye(len(M))),
    "kron": np.kron,
    "on_axes": _on_axes,
    "orthonormal": _orthonormal,
    "permutation": _permutation,
    "real": np.real,
    "rotation2d": _rotation2d,
    "scatter": _scatter,
    "skew": _skew,
    "tensor_train": _tensor_train,
    "toeplitz": _toeplitz,
}
"""Every operator of the design's table by its name: dense fields -> the dense matrix."""

BATCHED = (
    *("cayley", "circulant", "diag", "householder", "inverse"),
    *("kron", "orthonormal", "rotation2d", "skew"),
)
"""Operators that act on the last axes, with leading axes for a batch."""


def dense(e: AbstractOperator, values: dict[Expr, torch.Tensor]) -> Any:
    """The matrix of an operator by the table above."""

    def field(f: Any) -> Any:
        if isinstance(f, Expr):
            return evaluate(f, dict(values)).detach().numpy()
        return tuple(map(field, f)) if isinstance(f, tuple) else f

    return torch.as_tensor(DEFINITIONS[e.name](*map(field, e.fields)))


# --------------------------------------------------------------------------- exact arithmetic


def exact(root: Expr, values: dict[Expr, Any]) -> Any:
    """The value of an expression over arrays of SymPy numbers; `Initial` is the identity."""
    known = dict(values)

    def go(e: Expr) -> Any:
        if e not in known:
            if isinstance(e, AbstractOperator):
                known[e] = go(e.as_matrix())
            else:
                for c in e.children:
                    go(c)
                known[e] = np.asarray(EXACT[type(e).__name__](e, known), dtype=object)
        return known[e]

    return go(root)


def rationals(shape: Sequence[int], rng: Random) -> Any:
    """An array of fractions, none of them zero."""
    return _over(shape, lambda at: sympy.Rational(rng.choice((-1, 1)) * rng.randrange(1, 30), 7))


def _over(shape: Sequence[int], entry: Callable[[tuple[int, ...]], Any]) -> Any:
    out = np.empty(tuple(shape), dtype=object)
    for at in np.ndindex(*shape):
        out[at] = entry(at)
    return out


def _constant(e: Any, known: dict[Expr, Any]) -> Any:
    if isinstance(e.value, tuple):
        return np.array([sympy.Rational(v) for v in e.value], dtype=object).reshape(e.dims)
    return _over(e.dims, lambda at: e.value.xreplace(_places(at)))


def _places(at: tuple[int, ...]) -> dict[Any, Any]:
    return {s: sympy.Integer(v) for s, v in zip(INDEX, at, strict=False)}


def _contract(e: Any, known: dict[Expr, Any]) -> Any:
    inputs, out = e.terms
    sizes = {c: d for t, op in zip(inputs, e.operands, strict=True) for c, d in zip(t, op.dims, strict=True)}
    total = _over([sizes[c] for c in out], lambda at: sympy.Integer(0))
    for place in product(*(range(d) for d in sizes.values())):
        at = dict(zip(sizes, place, strict=True))
        term = sympy.Integer(1)
        for t, op in zip(inputs, e.operands, strict=True):
            term = term * known[op][tuple(at[c] for c in t)]
        total[tuple(at[c] for c in out)] += term
    return total


def _map(e: Any, known: dict[Expr, Any]) -> Any:
    symbols = {f"a{j}": np.broadcast_to(known[t], e.dims) for j, t in enumerate(e.args)}
    used = [s for s in e.fn.free_symbols if s.name in symbols]
    return _over(e.dims, lambda at: sympy.expand(e.fn.xreplace({s: symbols[s.name][at] for s in used})))


def _transform(e: Any, known: dict[Expr, Any]) -> Any:
    n, sign = e.dims[e.axis], {"fft": -1, "ifft": 1}[e.name]
    F = _over((n, n), lambda at: sympy.expand(sympy.exp(sign * 2 * sympy.pi * sympy.I * at[0] * at[1] / n)))
    y = np.moveaxis(np.tensordot(F, known[e.x], (1, e.axis)), 0, e.axis)
    return y / n if e.name == "ifft" else y


def _gathered(e: Any, index: Any, at: tuple[int, ...], known: dict[Expr, Any]) -> tuple[int, ...]:
    return tuple(
        int(known[i.table][at[i.axis]]) if isinstance(i, tuple) else int(i.xreplace(_places(at))) for i in index
    )


def _take(e: Any, known: dict[Expr, Any]) -> Any:
    return _over(e.dims, lambda at: known[e.x][_gathered(e, e.index, at, known)])


def _put(e: Any, known: dict[Expr, Any]) -> Any:
    out = _over(e.dims, lambda at: sympy.Integer(0))
    for at in np.ndindex(*e.x.dims):
        out[_gathered(e, e.index, at, known)] += known[e.x][at]
    return out


def _solve(e: Any, known: dict[Expr, Any]) -> Any:
    A, B = known[e.A], known[e.B]
    out = np.empty(e.dims, dtype=object)
    for at in np.ndindex(*e.dims[:-2]):
        out[at] = np.array(sympy.Matrix(A[at]).LUsolve(sympy.Matrix(B[at])), dtype=object)
    return out


def _broadcast(e: Any, known: dict[Expr, Any]) -> Any:
    return _over(e.dims, lambda at: known[e.x][tuple(at[j] for j in e.axes)])


EXACT: dict[str, Callable[[Any, dict[Expr, Any]], Any]] = {
    "Constant": _constant,
    "Table": lambda e, known: np.array([sympy.Integer(v) for v in e.values], dtype=object),
    "Contract": _contract,
    "Add": lambda e, known: sum(known[t] for t in e.terms),
    "Scale": lambda e, known: sympy.Rational(e.factor) * known[e.x],
    "Map": _map,
    "Reduce": lambda e, known: known[e.x].sum(e.axes),
    "Broadcast": _broadcast,
    "Reshape": lambda e, known: known[e.x].reshape(e.dims),
    "Take": _take,
    "Put": _put,
    "Solve": _solve,
    "Transform": _transform,
    "Detach": lambda e, known: known[e.x],
    "MatMul": lambda e, known: known[e.A] @ known[e.B],
    "Transpose": lambda e, known: known[e.A].swapaxes(-1, -2),
    "Initial": lambda e, known: known[e.A],
}
"""What a rule may be written in; a rule that needs more adds it here."""
