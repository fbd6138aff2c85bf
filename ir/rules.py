"""Named rewrites: an equation -> its equivalent forms. Data, one entry each, tested one by one.

A rule looks at one node and gives an equal expression, or None where it does not apply. The planner weighs
the forms (`Rule.forms`) against applying and forming the matrix; `simplify` always uses the others.
No rule names a method.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import sympy

from adaptc.errors import InternalError
from adaptc.ir.build import (
    add,
    apply,
    conj,
    constant,
    contract,
    eye,
    leaf,
    permute,
    real,
    reshape,
    scale,
    take,
    times,
    transform,
)
from adaptc.ir.dims import quotient, same
from adaptc.ir.expr import Expr, rewrite
from adaptc.ir.functions import ARGS
from adaptc.ir.matrix import Initial, MatMul, Transpose
from adaptc.ir.operators.block_diag import BlockDiag
from adaptc.ir.operators.butterfly import Butterfly
from adaptc.ir.operators.cayley import Cayley
from adaptc.ir.operators.circulant import Circulant
from adaptc.ir.operators.diag import Diag
from adaptc.ir.operators.householder import Householder
from adaptc.ir.operators.identity import Identity
from adaptc.ir.operators.inverse import Inverse
from adaptc.ir.operators.kron import Kron
from adaptc.ir.operators.permutation import Permutation
from adaptc.ir.operators.scatter import Scatter
from adaptc.ir.prims import INDEX, Add, At, Contract, Reshape, Scale, Table

ORTHOGONAL = (Cayley, Householder, Permutation)
"""Square matrices whose transpose is their inverse."""


@dataclass(frozen=True)
class Rule:
    """One rewrite. `after` is a form to be weighed when `form`, else always better."""

    name: str
    text: str
    rewrite: Callable[[Expr], Expr | None]
    example: Callable[[], Expr]
    form: bool

    registry: ClassVar[dict[str, Rule]] = {}

    def __post_init__(self) -> None:
        if self.name in Rule.registry:
            raise InternalError(f"two rules named {self.name}")
        Rule.registry[self.name] = self
        forms.cache_clear()


def rule(text: str, example: Callable[[], Expr], form: bool = False) -> Callable[[Callable[[Expr], Expr | None]], Rule]:
    """Register a rewrite under its function's name; `text` says before -> after."""

    def register(fn: Callable[[Expr], Expr | None]) -> Rule:
        return Rule(fn.__name__, text, fn, example, form)

    return register


def simplify(root: Expr) -> Expr:
    """Apply every rule that is always better, bottom up, until none fires."""
    rules = [r for r in Rule.registry.values() if not r.form]

    def change(node: Expr) -> Expr | None:
        for _ in range(64):
            after = next((new for r in rules if (new := r.rewrite(node)) is not None), None)
            if after is None:
                return node
            node = simplify(after)
        raise InternalError("rules do not come to rest")

    return rewrite(root, change)


@functools.lru_cache(maxsize=8192)
def forms(node: Expr) -> dict[str, Expr]:
    """The equivalent forms of one node, by rule name."""
    found = {r.name: r.rewrite(node) for r in Rule.registry.values() if r.form}
    return {name: after for name, after in found.items() if after is not None}


@rule("householder(U) -> I - U T^-1 U^T", lambda: Householder(leaf("U", 5, 3)), form=True)
def compact_wy(e: Expr) -> Expr | None:
    """r <= k reflections as one rank-r update; more are better conditioned one by one.

    With V the columns of U, T = triu(V^T V, 1) + diag(V^T V) / 2.

    Derivation: H_0 ... H_{i} = I - V_i T_i^-1 V_i^T for the first i columns; multiplying by the next reflection
    adds the column V_i^T v to T and v^T v / 2 to its diagonal. (Schreiber and Van Loan, 1989.)
    """
    if not isinstance(e, Householder) or e.U.ndim != 2:
        return None
    k, r = e.U.dims
    if isinstance(k, int) and isinstance(r, int) and r > k:
        return None
    gram = contract("ki,kj->ij", e.U, e.U)
    upper = constant(sympy.Heaviside(INDEX[1] - INDEX[0], sympy.Rational(1, 2)), (r, r))
    T = times(gram, upper)
    from_left = MatMul(e.U, MatMul(Inverse(T), Transpose(e.U)))
    return add(Identity(k), scale(-1, from_left))


@rule(
    "reshape(scatter(v, [at], (n k,)), (n, k)) -> scatter(v, [at // k, at % k], (n, k))",
    lambda: Reshape(Scatter(leaf("v", 3), (Table((0, 7, 11)),), (12,)), (3, 4)),
    form=True,
)
def scatter_in_matrix(e: Expr) -> Expr | None:
    """A sparse matrix written over its flat index knows its rows and columns."""
    if not isinstance(e, Reshape) or e.ndim != 2 or not isinstance(e.x, Scatter):
        return None
    if len(e.x.index) != 1 or e.x.v.ndim != 1:
        return None
    at, k = e.x.index[0], e.dims[1]
    if isinstance(at, Table):
        if not isinstance(k, int):
            return None
        rows: Expr = Table(tuple(t // k for t in at.values))
        cols: Expr = Table(tuple(t % k for t in at.values))
    else:
        rows = apply(sympy.floor(ARGS[0] / k), at, kind="integer")
        cols = apply(sympy.Mod(ARGS[0], k), at, kind="integer")
    return Scatter(e.x.v, (rows, cols), e.size)


@rule(
    "permutation(p) @ scatter(v, [r, c], shape) -> scatter(v, [q[r], c], shape), q the inverse of p",
    lambda: MatMul(Permutation(Table((2, 0, 1))), Scatter(leaf("v", 2), (Table((0, 2)), Table((3, 1))), (3, 4))),
)
def permuted_places(e: Expr) -> Expr | None:
    """A permuted sparse matrix has its entries at other places: nothing is moved."""
    if not isinstance(e, MatMul) or e.ndim != 2:
        return None
    left, right = _ends(e.A, last=True), _ends(e.B, last=False)
    for j, (P, S) in enumerate(((left[-1], right[0]), (right[0], left[-1]))):
        flipped = isinstance(P, Transpose)
        P = P.A if isinstance(P, Transpose) else P
        sparse = _sparse(S) if isinstance(P, Permutation) else None
        if sparse is None or not isinstance(P, Permutation):
            continue
        to = P.index if flipped == (j == 0) else _inverse(P.index)
        if to is not None:
            index = tuple(_looked_up(to, t) if i == j else t for i, t in enumerate(sparse.index))
            return functools.reduce(MatMul, [*left[:-1], Scatter(sparse.v, index, sparse.size), *right[1:]])
    return None


def _ends(e: Expr, last: bool) -> list[Expr]:
    """A product's factors, the last or first of them apart."""
    if not isinstance(e, MatMul):
        return [e]
    inner = _ends(e.B if last else e.A, last)
    rest = inner[:-1] if last else inner[1:]
    more = functools.reduce(MatMul, [e.A, *rest] if last else [*rest, e.B])
    return [more, inner[-1]] if last else [inner[0], more]


def _sparse(e: Expr) -> Scatter | None:
    found = scatter_in_matrix.rewrite(e)
    e = e if found is None else found
    return e if isinstance(e, Scatter) and len(e.index) == len(e.size) == 2 else None


def _inverse(p: Expr) -> Expr | None:
    return Table(tuple(sorted(range(len(p.values)), key=p.values.__getitem__))) if isinstance(p, Table) else None


def _looked_up(p: Expr, at: Expr) -> Expr:
    """p[at]."""
    if isinstance(p, Table) and isinstance(at, Table):
        return Table(tuple(p.values[t] for t in at.values))
    return take(p, (At(at, 0),), at.dims)


@rule(
    "einsum(x, circulant(c)) -> ifft(einsum(fft(x), fft(c)))",
    lambda: contract("mk,nk->mn", leaf("x", 3, 4), Circulant(leaf("c", 4))),
    form=True,
)
def circular_convolution(e: Expr) -> Expr | None:
    """A product with circulant matrices, one for each leading index, is one with their spectra.

    The spectrum of sum_j c[i - j] x[j] is that of c times that of x, of sum_j c[j - i] x[j] the conjugate one.
    """
    if not isinstance(e, Contract) or len(e.operands) != 2:
        return None
    (inputs, out) = e.terms
    for j, op in enumerate(e.operands):
        flipped = isinstance(op, Transpose)
        C, x, term, other = op.A if isinstance(op, Transpose) else op, e.operands[1 - j], inputs[j], inputs[1 - j]
        if not isinstance(C, Circulant) or C.kind != "real" or x.kind != "real":
            continue
        row, column = (term[-1], term[-2]) if flipped else (term[-2], term[-1])
        for free, summed in ((row, column), (column, row)):
            if free in out and free not in other and summed in other and summed not in out:
                straight = transform("fft", C.c, C.c.ndim - 1)
                spectrum = straight if free == row else conj(straight)
                spec = f"{other.replace(summed, free)},{term[:-2]}{free}->{out}"
                y = contract(spec, transform("fft", x, other.index(summed)), spectrum)
                return real(transform("ifft", y, out.index(free)))
    return None


@rule("butterfly(R) -> block_diag(the stages of each group)", lambda: Butterfly(leaf("R", 2, 4, 2, 2)), form=True)
def butterfly_in_blocks(e: Expr) -> Expr | None:
    """Stages of blocks of b stay inside groups of b 2^(stages - 1): one product with blocks of that size.

    The group of columns g of butterfly(R) is what the stages make of the identity there.
    """
    if not isinstance(e, Butterfly):
        return None
    (stages, _, b, _), k = e.R.dims, e.dims[0]
    size = int(b) * 2 ** (int(stages) - 1)
    if stages == 1 or same(size, k):
        return None
    tiled = take(eye(size), (INDEX[0], sympy.Mod(INDEX[1], size)), (size, k))
    groups = reshape(e.apply(tiled), (size, quotient(k, size), size))
    return BlockDiag((permute(groups, (1, 2, 0)),))


@rule(
    "kron(A, B) @ kron(C, D) -> kron(A @ C, B @ D)",
    lambda: MatMul(Kron(leaf("A", 2, 3), leaf("B", 3, 2)), Kron(leaf("C", 3, 2), leaf("D", 2, 2))),
    form=True,
)
def mixed_product(e: Expr) -> Expr | None:
    """Kronecker products of matrices that fit multiply factor by factor."""
    if not isinstance(e, MatMul) or not isinstance(e.A, Kron) or not isinstance(e.B, Kron):
        return None
    (A, B), (C, D) = (e.A.A, e.A.B), (e.B.A, e.B.B)
    fits = same(A.dims[-1], C.dims[-2]) and same(B.dims[-1], D.dims[-2])
    return Kron(MatMul(A, C), MatMul(B, D)) if fits and e.ndim == 2 else None


@rule("cayley(X)^T @ cayley(X) -> I", lambda: MatMul(Transpose(Cayley(leaf("X", 3, 3))), Cayley(leaf("X", 3, 3))))
def product_with_inverse(e: Expr) -> Expr | None:
    """An orthogonal matrix times its transpose."""
    if not isinstance(e, MatMul) or e.ndim != 2:
        return None
    square = isinstance(e.B, ORTHOGONAL) and e.A is Transpose(e.B)
    return Identity(e.dims[0]) if square or (isinstance(e.A, ORTHOGONAL) and e.B is Transpose(e.A)) else None


@rule(
    "einsum('ij,ij->i', A @ cayley(X), A @ cayley(X)) -> einsum('ij,ij->i', A, A)",
    lambda: contract("ij,ij->i", *[MatMul(leaf("A", 2, 3), Cayley(leaf("X", 3, 3)))] * 2),
)
def norm_of_rotated(e: Expr) -> Expr | None:
    """Orthogonal matrices keep the norms of the rows that they turn, and of the whole matrix."""
    if not isinstance(e, Contract) or e.spec not in ("ab,ab->a", "ab,ab->b", "ab,ab->") or len(set(e.operands)) > 1:
        return None
    M = e.operands[0]
    if not isinstance(M, MatMul):
        return None
    rows, columns = e.spec != "ab,ab->b", e.spec != "ab,ab->a"
    if rows and _orthogonal(M.B):
        return contract(e.spec, M.A, M.A)
    return contract(e.spec, M.B, M.B) if columns and _orthogonal(M.A) else None


@rule("inverse(cayley(X)) -> cayley(X)^T", lambda: Inverse(Cayley(leaf("X", 3, 3))))
def inverse_of_rotation(e: Expr) -> Expr | None:
    """The inverse of an orthogonal matrix is its transpose."""
    if isinstance(e, Inverse) and isinstance(e.M, ORTHOGONAL):
        return Transpose(e.M)
    return None


@rule("(A @ B)^T -> B^T @ A^T", lambda: Transpose(MatMul(leaf("A", 2, 3), leaf("B", 3, 5))))
def transpose_of_product(e: Expr) -> Expr | None:
    """Transposes move to the leaves, where they are free."""
    if isinstance(e, Transpose) and isinstance(e.A, MatMul):
        return MatMul(_transpose(e.A.B), _transpose(e.A.A))
    return None


@rule("(c A + B)^T -> c A^T + B^T", lambda: Transpose(leaf("A", 2, 3) + 2 * leaf("B", 2, 3)))
def transpose_of_sum(e: Expr) -> Expr | None:
    """A sum's terms are transposed one by one."""
    if isinstance(e, Transpose) and isinstance(e.A, Add):
        return add(*map(_transpose, e.A.terms))
    return None


@rule("diag(v)^T -> diag(v)", lambda: Transpose(Diag(leaf("v", 4))))
def transpose_of_diag(e: Expr) -> Expr | None:
    """A diagonal matrix is symmetric."""
    return e.A if isinstance(e, Transpose) and isinstance(e.A, Diag) else None


@rule("diag(u) @ diag(v) -> diag(u * v)", lambda: MatMul(Diag(leaf("u", 4)), Diag(leaf("v", 4))))
def product_of_diags(e: Expr) -> Expr | None:
    """Diagonals multiply entry by entry."""
    if isinstance(e, MatMul) and isinstance(e.A, Diag) and isinstance(e.B, Diag):
        return Diag(times(e.A.v, e.B.v))
    return None


@rule("inverse(diag(v)) -> diag(1 / v)", lambda: Inverse(Diag(leaf("v", 4))))
def inverse_of_diag(e: Expr) -> Expr | None:
    """A diagonal matrix is inverted entry by entry."""
    return Diag(apply(1 / ARGS[0], e.M.v)) if isinstance(e, Inverse) and isinstance(e.M, Diag) else None


@rule(
    "initial(c A @ B) -> c initial(A) @ initial(B)",
    lambda: Initial(2 * (leaf("A", 9, 2) @ leaf("B", 2, 9))),
)
def initial_of_product(e: Expr) -> Expr | None:
    """Keep the initial factors instead of their product, where they are smaller."""
    if not isinstance(e, Initial):
        return None
    if isinstance(e.A, Scale):
        return scale(e.A.factor, Initial(e.A.x))
    if isinstance(e.A, MatMul):
        A, B = e.A.A, e.A.B
        inner, (n, k) = A.dims[-1], (A.dims[-2], B.dims[-1])
        if all(isinstance(d, int) for d in (inner, n, k)) and inner * (n + k) < n * k:
            return MatMul(Initial(A), Initial(B))
    return None


def _orthogonal(e: Expr) -> bool:
    return isinstance(e.A if isinstance(e, Transpose) else e, ORTHOGONAL)


def _transpose(e: Expr) -> Expr:
    if isinstance(e, Scale):
        return scale(e.factor, _transpose(e.x))
    return e.A if isinstance(e, Transpose) else Transpose(e)
