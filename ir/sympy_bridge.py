"""Expressions as SymPy matrix expressions, for reading and typesetting. A bridge, not the IR's own form."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import sympy
from sympy import HadamardProduct, KroneckerProduct, MatrixExpr, MatrixSymbol

from adaptc.errors import EquationError, LeafError, ShapeError
from adaptc.ir import build
from adaptc.ir.algebra import add, matmul, multiply, transpose
from adaptc.ir.dims import as_dim, same_shape, show
from adaptc.ir.expr import Expr
from adaptc.ir.matrix import MatMul, Transpose
from adaptc.ir.operators.diag import Diag
from adaptc.ir.operators.identity import Identity
from adaptc.ir.operators.inverse import Inverse
from adaptc.ir.operators.kron import Kron
from adaptc.ir.prims import Add, Constant, Contract, Leaf, Scale
from adaptc.ir.printer import formula


def to_sympy(e: Expr) -> MatrixExpr:
    """Products, sums, transposes, inverses, Hadamard and Kronecker products as SymPy's own; other operators and
    functions as named symbols.

    A vector (n,) is an n x 1 matrix.
    """
    known = TO.get(type(e)) if e.ndim == 2 or isinstance(e, (Add, Scale, Constant)) else None
    found = known(e) if known else None
    if found is None:
        rows, cols = (*e.dims, 1, 1)[:2]
        return MatrixSymbol(e.name if isinstance(e, Leaf) else formula(e), rows, cols)
    return found


def _scaled(e: Scale) -> MatrixExpr:
    factor = e.factor if isinstance(e.factor, sympy.Expr) else sympy.nsimplify(e.factor)
    return factor * to_sympy(e.x)


def _elementwise(e: Contract) -> MatrixExpr | None:
    plain = len(e.operands) == 2 and e.terms[0][0] == e.terms[0][1] == e.terms[1]
    return HadamardProduct(*map(to_sympy, e.operands)) if plain else None


def _number(e: Constant) -> MatrixExpr | None:
    if e.value not in (0, 1) or e.ndim > 2:
        return None
    return (sympy.OneMatrix if e.value == 1 else sympy.ZeroMatrix)(*(*e.dims, 1, 1)[:2])


TO: dict[type[Expr], Any] = {
    Add: lambda e: sympy.MatAdd(*map(to_sympy, e.terms)),
    Scale: _scaled,
    MatMul: lambda e: sympy.MatMul(to_sympy(e.A), to_sympy(e.B)),
    Transpose: lambda e: sympy.Transpose(to_sympy(e.A)),
    Contract: _elementwise,
    Constant: _number,
    Kron: lambda e: KroneckerProduct(to_sympy(e.A), to_sympy(e.B)),
    Inverse: lambda e: sympy.Inverse(to_sympy(e.M)),
    Identity: lambda e: sympy.Identity(e.dims[0]),
    Diag: lambda e: sympy.DiagMatrix(to_sympy(e.v)),
}
"""What a matrix of ours is in SymPy."""


def from_sympy(expr: Any, leaves: Mapping[str, Expr]) -> Expr:
    """A SymPy matrix expression as an expression of the language; `leaves` says what each MatrixSymbol stands for.

    Sums, products, scalar factors, transposes, inverses, Hadamard and Kronecker products, identities, zero and one
    matrices, and diagonal matrices of n x 1 symbols. Raises: LeafError for a symbol without a leaf, EquationError for
    anything else; ShapeError where the leaves do not fit.
    """
    kind = type(expr).__name__
    if isinstance(expr, MatrixSymbol):
        if expr.name not in leaves:
            raise LeafError(f"no leaf for the symbol '{expr.name}': given are {', '.join(leaves) or 'none'}")
        return _fitting(expr, leaves[expr.name])
    if kind not in FROM:
        raise EquationError(f"SymPy's {kind} has no form in the language: {expr}")
    return FROM[kind](expr, leaves)


def _fitting(symbol: Any, leaf: Expr) -> Expr:
    """The leaf, if it has the symbol's size; a vector (n,) is n x 1."""
    size = tuple(map(as_dim, symbol.shape))
    if not same_shape(size, leaf.dims if leaf.ndim == 2 else (*leaf.dims, 1)):
        raise ShapeError(f"the symbol '{symbol.name}' is {show(size)}, its leaf {show(leaf.dims)}")
    return leaf


def _joined(combine: Callable[[Expr, Expr], Expr]) -> Callable[[Any, Mapping[str, Expr]], Expr]:
    """The operands one after another, by an operation of the algebra."""
    return lambda expr, leaves: functools.reduce(combine, (from_sympy(a, leaves) for a in expr.args))


def _product(expr: Any, leaves: Mapping[str, Expr]) -> Expr:
    factor: Any = sympy.Integer(1)
    result: Expr | None = None
    for a in expr.args:
        if not getattr(a, "is_Matrix", False):
            factor = factor * a
            continue
        part = from_sympy(a, leaves)
        result = part if result is None else matmul(result, part)
    if result is None or not sympy.sympify(factor).free_symbols <= {s for d in result.dims for s in _symbols(d)}:
        raise EquationError(f"the factor {factor} of {expr} is no number: write it as a scalar leaf")
    return multiply(factor, result)


def _symbols(d: Any) -> Any:
    return () if isinstance(d, int) else d.free_symbols


def _diagonal(expr: Any, leaves: Mapping[str, Expr]) -> Expr:
    v = from_sympy(expr.args[0], leaves)
    return Diag(v if v.ndim == 1 else build.reshape(v, (v.dims[0],)))


def _power(expr: Any, leaves: Mapping[str, Expr]) -> Expr:
    base, power = from_sympy(expr.args[0], leaves), expr.args[1]
    if not power.is_Integer:
        raise EquationError(f"the power {power} of {expr} is no whole number")
    if power == 0:
        return Identity(base.dims[0])
    if power < 0:
        base = Inverse(base)
    result = base
    for _ in range(abs(int(power)) - 1):
        result = matmul(result, base)
    return result


FROM: dict[str, Any] = {
    "MatAdd": _joined(add),
    "MatMul": _product,
    "HadamardProduct": _joined(multiply),
    "KroneckerProduct": _joined(Kron),  # associative
    "Transpose": lambda expr, leaves: transpose(from_sympy(expr.args[0], leaves)),
    "Inverse": lambda expr, leaves: Inverse(from_sympy(expr.args[0], leaves)),
    "MatPow": _power,
    "DiagMatrix": _diagonal,
    "DiagonalMatrix": _diagonal,
    "Identity": lambda expr, leaves: Identity(as_dim(expr.rows)),
    "ZeroMatrix": lambda expr, leaves: build.zeros(tuple(map(as_dim, expr.shape))),
    "OneMatrix": lambda expr, leaves: build.ones(tuple(map(as_dim, expr.shape))),
}
"""What SymPy's matrix classes mean here."""
