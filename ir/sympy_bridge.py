"""Expressions as SymPy matrix expressions, for reading and typesetting. A bridge, not the IR's own form."""

from __future__ import annotations

import sympy
from sympy import HadamardProduct, MatrixExpr, MatrixSymbol

from adaptc.ir.expr import Expr
from adaptc.ir.matrix import MatMul, Transpose
from adaptc.ir.prims import Add, Contract, Leaf, Scale
from adaptc.ir.printer import formula


def to_sympy(e: Expr) -> MatrixExpr:
    """Products, sums, transposes and Hadamard products as SymPy's own; operators and functions as named symbols.

    A vector (n,) is an n x 1 matrix.
    """
    match e:
        case Add():
            return sympy.MatAdd(*map(to_sympy, e.terms))
        case Scale():
            factor = e.factor if isinstance(e.factor, sympy.Expr) else sympy.nsimplify(e.factor)
            return factor * to_sympy(e.x)
        case MatMul():
            return sympy.MatMul(to_sympy(e.A), to_sympy(e.B))
        case Transpose():
            return sympy.Transpose(to_sympy(e.A))
        case Contract() if len(e.operands) == 2 and e.terms[0][0] == e.terms[0][1] == e.terms[1] and e.ndim == 2:
            return HadamardProduct(*map(to_sympy, e.operands))
        case _:
            rows, cols = (*e.dims, 1, 1)[:2]
            return MatrixSymbol(e.name if isinstance(e, Leaf) else formula(e), rows, cols)
