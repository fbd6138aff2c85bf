"""Dtypes of a program's tensors, by one rule.

Tensors with a row per token have x's dtype, random zeros and ones among them; what is computed from parameters
alone, or summed over tokens (the gradients of parameters), has the parameters' dtype, float32 at least. Elementwise
functions, maxima, transforms and solves of 16-bit tensors work in float32. Products and sums accumulate in float32 or
wider.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from adaptc.ir.dims import TOKENS
from adaptc.ir.expr import Expr
from adaptc.ir.prims import (
    Add,
    Broadcast,
    Contract,
    Detach,
    Draw,
    Leaf,
    Map,
    Put,
    Reduce,
    Reshape,
    Scale,
    Solve,
    Table,
    Take,
    TopK,
    Transform,
)
from adaptc.plan.plan import depends_on_tokens

MOVES = (Reshape, Broadcast, Take, Put, Detach)
_RANK = {"bfloat16": 0, "float16": 0, "float32": 1, "float64": 2}
_COMPLEX = {"float32": "complex64", "float64": "complex128"}


def wide(dtypes: list[str]) -> str:
    """The widest of some dtypes, float32 at least."""
    return "float64" if any(_RANK.get(d, 0) == 2 for d in dtypes) else "float32"


@dataclass
class Types:
    """Dtype of every node of one program. token: x's dtype. wide: the dtype of parameter-side values."""

    token: str
    wide: str
    given: dict[Any, str]
    _known: dict[Expr, str] = field(default_factory=dict)

    def __getitem__(self, e: Expr) -> str:
        if e in self.given:
            return self.given[e]
        if e not in self._known:
            self._known[e] = self._infer(e)
        return self._known[e]

    def _infer(self, e: Expr) -> str:
        if e.kind == "complex":
            return _COMPLEX[self.wide]
        if e.kind == "integer" or isinstance(e, Table):
            return "int64"
        if isinstance(e, Leaf):
            return self.token if has_rows(e) else self.wide
        if isinstance(e, Draw):
            return self.token if has_rows(e) and e.drop is not None else self.wide
        if isinstance(e, MOVES) or (isinstance(e, Contract) and len(e.operands) == 1):
            return self[e.children[0]]
        if isinstance(e, Reduce) and e.op == "sum" and has_rows(e):  # a product with ones
            return self[e.x]
        if not has_rows(e) or isinstance(e, (Map, Reduce, Transform, Solve, TopK)):
            return self.wide
        if isinstance(e, (Contract, Add)):
            return self.token
        return self[e.x] if isinstance(e, Scale) else self.token


def has_rows(e: Expr) -> bool:
    """Does a tensor have a row per token?"""
    return any(not isinstance(d, int) and d.has(TOKENS) for d in e.dims) and depends_on_tokens(e)
