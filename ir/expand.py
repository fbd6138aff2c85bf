"""Expand: an equation with operators -> primitives, once the form of each part is chosen.

A part that multiplies activations can be applied or formed; a rule may give further forms. Each such place is
a `Site`; `choose` picks one of its options, and the planner tries the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_letters

from adaptc.errors import InternalError
from adaptc.ir.build import add, again, batched, conj, contract, is_zero, scale, transpose_last
from adaptc.ir.expr import Expr, postorder, rewrite, rewrite_all
from adaptc.ir.gather import gathered, gathered_back, picks
from adaptc.ir.matrix import ATTACH, MatMul, Transpose
from adaptc.ir.operator import AbstractOperator
from adaptc.ir.prims import Add, Constant, Contract, Detach, Leaf, Primitive, Scale, Take
from adaptc.ir.rules import forms
from adaptc.ir.vjp import vjp

FLAT = 8  # operands of one contraction: its best order is found by search over subsets


@dataclass(frozen=True)
class Site:
    """A place where equivalent forms compete: the node, and the names of its forms."""

    node: Expr
    options: tuple[str, ...]


Choose = Callable[[Site], str]


def first(site: Site) -> str:
    """The default form: a rule's where one fires, else apply where that is possible."""
    return site.options[0]


def expand(root: Expr, choose: Choose = first) -> Expr:
    """The equation in primitives, nested contractions flattened."""
    return flatten(_Expander(choose).lower(root))


def dense(root: Expr) -> Expr:
    """The equation in primitives with every operator formed: its definition."""
    return expand(root, lambda site: "dense")


class _Expander:
    """One walk; equal nodes are expanded once."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        self.lowered: dict[Expr, Expr] = {}

    def lower(self, e: Expr) -> Expr:
        """e as primitives."""
        if e not in self.lowered:
            self.lowered[e] = self._lower(e)
        return self.lowered[e]

    def _lower(self, e: Expr) -> Expr:
        if isinstance(e, MatMul):
            return self._product(e.A, e.B)
        if isinstance(e, Transpose):
            return transpose_last(self.lower(e.A))
        if isinstance(e, ATTACH):
            raise InternalError(f"{type(e).__name__} is computed at attach time and cannot be expanded")
        alternatives = forms(e)
        options = (*alternatives, "dense" if isinstance(e, AbstractOperator) else "as written")
        option = self.choose(Site(e, options)) if alternatives else options[0]
        if option in alternatives:
            return self.lower(alternatives[option])
        if isinstance(e, AbstractOperator):
            return self.lower(e.as_matrix())
        return again(e.rebuild(self.lower))

    def _product(self, A: Expr, B: Expr) -> Expr:
        if A.ndim != 2:
            return batched("...ij,...jk->...ik", self.lower(A), self.lower(B))
        if _composite(B):
            return self.pull(self.lower(A), B)
        if _composite(A):
            return transpose_last(self.push(transpose_last(self.lower(B)), A))
        return contract("ij,jk->ik", self.lower(A), self.lower(B))

    def push(self, x: Expr, e: Expr) -> Expr:
        """x @ e.T for lowered x (m, k)."""
        return self._multiply(x, e, transposed=True)

    def pull(self, x: Expr, e: Expr) -> Expr:
        """x @ e for lowered x (m, n)."""
        return self._multiply(x, e, transposed=False)

    def _multiply(self, x: Expr, e: Expr, transposed: bool) -> Expr:
        if isinstance(e, Scale):
            return scale(e.factor, self._multiply(x, e.x, transposed))
        if isinstance(e, Transpose):
            return self._multiply(x, e.A, not transposed)
        alternatives = forms(e)
        options = (*alternatives, *(["apply"] if _composite(e) else []), "dense")
        plain = isinstance(e, MatMul) and not _structured(e)  # its order is the contraction's business
        option = "apply" if plain else self.choose(Site(e, options)) if len(options) > 1 else "dense"
        if option not in options:
            option = "dense"
        if option in alternatives:
            return self._multiply(x, alternatives[option], transposed)
        if option == "dense":
            return contract("mk,nk->mn" if transposed else "mn,nk->mk", x, self._formed(e))
        return self._apply(x, e, transposed)

    def _formed(self, e: Expr) -> Expr:
        """e as one matrix, whatever form its site takes elsewhere."""
        if isinstance(e, AbstractOperator):
            return self.lower(e.as_matrix())
        return self.lower(e)

    def _apply(self, x: Expr, e: Expr, transposed: bool) -> Expr:
        if isinstance(e, Add):
            return add(*(self._multiply(x, t, transposed) for t in e.terms))
        if isinstance(e, MatMul):
            first_, last = (e.B, e.A) if transposed else (e.A, e.B)
            return self._multiply(self._multiply(x, first_, transposed), last, transposed)
        if isinstance(e, AbstractOperator):
            return self.lower(e.apply(x)) if transposed else self._adjoint(x, e)
        if isinstance(e, Take):
            into, onto = (1, 0) if transposed else (0, 1)
            y = self._multiply(gathered_back(x, e.index[into], into, e.x.dims[into]), e.x, transposed)
            return gathered(y, e.index[onto], onto, e.dims[onto])
        raise InternalError(f"cannot apply {type(e).__name__}")

    def _adjoint(self, x: Expr, e: AbstractOperator) -> Expr:
        """x @ e: the derivative of v -> v @ e.T, which is linear in v."""
        kind = "complex" if "complex" in (x.kind, e.kind) else "real"
        v = Leaf("v", (x.dims[0], e.dims[-1]), "token", kind)
        return conj(vjp(self.lower(e.apply(v)), conj(x), [v])[v])


def _composite(e: Expr) -> bool:
    """Can a product with e be split over the parts of e?"""
    if isinstance(e, AbstractOperator):
        return e.ndim == 2 and e.applies()
    return e.ndim == 2 and (isinstance(e, (Transpose, MatMul, Add, Scale)) or (isinstance(e, Take) and picks(e)))


def _structured(e: Expr) -> bool:
    """Is there anything in a product chain that a plain contraction cannot reorder?"""
    if isinstance(e, (MatMul, Transpose, Scale)):
        return any(map(_structured, e.children))
    return isinstance(e, Add) or (isinstance(e, AbstractOperator) and e.applies())


def flatten(root: Expr) -> Expr:
    """Contractions of contractions become one; its order is chosen later."""
    return rewrite(root, lambda e: _inline(e) if isinstance(e, Contract) else None)


def _inline(node: Contract) -> Expr:
    inputs, out = node.terms
    inner = [op for op in node.operands if isinstance(op, Contract)]
    if not inner or sum(len(o.operands) if isinstance(o, Contract) else 1 for o in node.operands) > FLAT:
        met = any(isinstance(op, Constant) for op in node.operands)  # perhaps since the node was built
        return contract(node.spec, *node.operands) if met else node
    used = set("".join(inputs) + out)
    fresh = (c for c in ascii_letters if c not in used)
    terms: list[str] = []
    operands: list[Expr] = []
    for letters, op in zip(inputs, node.operands, strict=True):
        if not isinstance(op, Contract):
            terms.append(letters)
            operands.append(op)
            continue
        below, result = op.terms
        names = dict(zip(result, letters, strict=True))
        for t, o in zip(below, op.operands, strict=True):
            terms.append("".join(names[c] if c in names else names.setdefault(c, next(fresh)) for c in t))
            operands.append(o)
    return contract(f"{','.join(terms)}->{out}", *operands)


def settled(roots: Sequence[Expr]) -> list[Expr]:
    """Expressions with their derivatives taken: Detach has done its work, what it kept apart cancels, contractions are
    flat."""
    if any(isinstance(e, Detach) for e in postorder(*roots)):
        roots = rewrite_all(roots, _attached)
    return rewrite_all(roots, lambda e: _inline(e) if isinstance(e, Contract) else None)


def _attached(e: Expr) -> Expr | None:
    if isinstance(e, Detach):
        return e.x
    if isinstance(e, Add):
        return add(*e.terms)
    return contract(e.spec, *e.operands) if isinstance(e, Contract) and any(map(is_zero, e.operands)) else None


def primitive(root: Expr) -> bool:
    """Does an expression consist of primitives alone?"""
    return all(isinstance(e, Primitive) for e in postorder(root))
