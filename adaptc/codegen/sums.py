"""Sums of a generated function: products go into what they are added to, and what is repeated or laid out otherwise is
added where it belongs, not copied first."""

from __future__ import annotations

from collections import Counter

import sympy

from adaptc.codegen.clusters import clusters
from adaptc.codegen.gather import slices, stacked, tiles
from adaptc.codegen.layout import transposed
from adaptc.codegen.native import Kernels
from adaptc.codegen.product import groups, matmul, matrix_operands, product, turn
from adaptc.codegen.types import Types
from adaptc.codegen.writer import Writer
from adaptc.ir.expr import Expr
from adaptc.ir.prims import Add, Broadcast, Contract, Reshape, Scale, Take
from adaptc.plan.plan import reach
from adaptc.plan.sampled import fused
from adaptc.plan.spectra import half_spectra, only_real


class Sums(Writer):
    """Writes sums, and the products in them."""

    def __init__(self, names: dict[Expr, str], types: Types, results: list[Expr], kernels: Kernels | None) -> None:
        super().__init__(names, types)
        self.kernels = kernels
        order = reach(results, list(names))
        together = clusters(order, names, results, types) if kernels is not None and kernels.together() else []
        self.cluster_of = {e: c for c in together for e in c.nodes}
        self.fixed = {*names, *self.cluster_of}
        self.uses: Counter[Expr] = Counter(c for e in order if e not in names for c in e.children)
        self.uses.update(results)
        made = [e for e in order if e not in names]
        self.sparse, self.unmade = fused(made, results)
        self.half_spectra = half_spectra(made, self.sparse, self.unmade, results)
        self.only_real = only_real(made, self.sparse, results)
        self.transposed = transposed(order, names)
        self.deferred = {t for e in order if isinstance(e, Add) and e not in self.fixed for t in self._fusable(e)}
        apart = [e for e in order if isinstance(e, Scale) and e not in self.deferred and e not in self.fixed]
        self.deferred |= {e.x for e in apart if self._takes(e)}
        self.laid = {t for e in order if isinstance(e, Add) and e not in self.fixed for t in self._laid(e)}
        self.deferred |= self.laid | set(self.only_real.values())

    def _fusable(self, e: Add) -> list[Expr]:
        """Nodes that the sum e computes itself: matrix products and numbers times a term, used nowhere else."""
        found: list[Expr] = []
        for t in e.terms:
            number = isinstance(t, Scale) and not isinstance(t.factor, sympy.Expr)
            inner = t.x if isinstance(t, Scale) else t
            if self.uses[t] != 1 or t in self.fixed or (t is not inner and not number):
                continue
            if number or self._joins(t, e):
                found.append(t)
            if self.uses[inner] == 1 and inner not in self.fixed and self._is_mm(inner, e):
                found.append(inner)
        return found

    def _joins(self, t: Expr, e: Add) -> bool:
        """Is a term a sum whose terms the sum e can add itself?"""
        return isinstance(t, Add) and self.types[t] == self.types[e] and stacked(t.terms) is None

    def _terms(self, e: Add) -> list[Expr]:
        """The terms of a sum, and those of the sums among them that are not written."""
        return [s for t in e.terms for s in (self._terms(t) if isinstance(t, Add) and t in self.deferred else [t])]

    def _takes(self, e: Scale) -> bool:
        """Can a number go into the product that it scales?"""
        number = not isinstance(e.factor, sympy.Expr)
        return number and self.uses[e.x] == 1 and e.x not in self.fixed and self._is_mm(e.x, e)

    def _is_mm(self, e: Expr, total: Expr) -> bool:
        if not isinstance(e, Contract) or len(e.operands) != 2 or self.types[e] != self.types[total]:
            return False
        if self.halved(e):
            return False
        return matrix_operands(e, "a", "b") is not None

    def halved(self, e: Contract) -> bool:
        """Is a float32 product of bfloat16 tensors better computed in bfloat16, summed in float32 and rounded once? As
        it stands both would be copied, and the product take twice as long."""
        g = groups(e)
        both = len(e.operands) == 2 and all(self.types[op] == "bfloat16" for op in e.operands)
        return both and self.types[e] == "float32" and bool(g.summed) and bool(g.left or g.right)

    def operands(self, e: Contract) -> tuple[str, str]:
        """The names of a product's operands in the dtype it is computed in."""
        dtype = "bfloat16" if self.halved(e) else self.types[e]
        a, b = (self.cast(op, dtype) for op in e.operands)
        return a, b

    def add(self, e: Add) -> None:
        """Sum the terms: bias and first product in one addmm, then everything onto the sum, in place."""
        dtype, found = self.types[e], stacked(e.terms)
        if found is not None and all(t in self.names for t in found[1]):  # else some were given put already
            names = ", ".join(self.cast(t, dtype) for t in found[1])
            self.let(e, f"torch.cat(({names}), {found[0]})", fresh=True)
            return
        parts = [self._scaled(t) for t in self._terms(e)]
        products = [(c, t) for c, t in parts if isinstance(t, Contract) and t in self.deferred]
        laid = [(c, t) for c, t in parts if t in self.laid]
        others = [(c, t) for c, t in parts if t not in self.deferred]
        text, own = self._start(others, products, dtype)
        self.let(e, text, fresh=True)
        name = self.names[e]
        if own or not (others or products or laid):  # else the first term makes a new tensor
            self.places[name] = self.place(text)
        for c, t in laid:
            value, shape = self._as_laid(t)
            text = f"torch.add({name}.reshape({shape}), {value}{_alpha(c)}).reshape({self.shape(e.dims)})"
            self.lines.append(f"{name} = {text}")
            own = True
        for c, t in others:
            value = f"{self.cast(t, dtype)}{_alpha(c)}"
            self.lines.append(f"{name}.add_({value})" if own else f"{name} = torch.add({name}, {value})")
            own = True
        for c, t in products:
            a, b = self._pair(t)
            if t in self.transposed:
                value = f"{matmul(*turn((a, b)))}.t(){_alpha(c)}"
                self.lines.append(f"{name}.add_({value})" if own else f"{name} = torch.add({name}, {value})")
            else:
                value = f"{a}, {b}{_alpha(c)}"
                self.lines.append(f"{name}.addmm_({value})" if own else f"{name} = torch.addmm({name}, {value})")
            own = True

    def _laid(self, e: Add) -> list[Expr]:
        """Terms that need no tensor of their own: entries that lie otherwise in memory, or over and over again. At
        least one term must be there as it is."""
        found = [t for t in (self._scaled(t)[1] for t in self._terms(e)) if self.uses[t] == 1 and self._repeats(t)]
        plain = any(t not in found and t not in self.deferred for _, t in map(self._scaled, self._terms(e)))
        return found if plain and all(self.types[t] == self.types[e] for t in found) else []

    def _repeats(self, t: Expr) -> bool:
        if t in self.fixed or t in self.unmade:
            return False
        if isinstance(t, Take):
            return tiles(t.index, t.x.dims, t.size) is not None and slices(t.index, t.size) is None
        turned = isinstance(t, Reshape) and isinstance(t.x, Contract) and min(t.ndim, t.x.ndim) > 1
        return turned and all(isinstance(d, int) for d in t.dims)

    def _as_laid(self, t: Expr) -> tuple[str, str]:
        """A term's text, and the shape in which it is added."""
        if isinstance(t, Take):
            again = tiles(t.index, t.x.dims, t.size) or []
            apart = [n for r, d in zip(again, t.x.dims, strict=True) for n in (r, d)]
            ones = [n for d in t.x.dims for n in (1, d)]
            x = self.reshaped(self.names[t.x], self.shape(ones), self.types[t])
            return f"{x}.contiguous()", self.shape(apart)
        assert isinstance(t, Reshape)
        return self.names[t.x], self.shape(t.x.dims)

    def _start(
        self, others: list[tuple[float, Expr]], products: list[tuple[float, Contract]], dtype: str
    ) -> tuple[str, bool]:
        """Text of the first terms, which leave the lists, and whether it is a new tensor."""
        plain = next((p for p in products if p[0] == 1), None)
        bias = next((o for o in others if o[0] == 1 and self._row(o[1]) is not None), None)
        row = self._row(bias[1]) if bias else None
        if plain and bias and row is not None:
            products.remove(plain)
            others.remove(bias)
            return matmul(*self._pair(plain[1]), self.cast(row, dtype)), True
        if plain and (not others or not any(self._owned(o, dtype) for o in others)):
            products.remove(plain)
            return self.product(plain[1]), True
        if not others:
            c, t = products.pop(0)
            return self._times(c, t, dtype), True
        first = next((o for o in others if self._owned(o, dtype)), None)
        if first:
            others.remove(first)
            return self.names[first[1]], True
        first = next((o for o in others if o[0] == 1 and not isinstance(o[1], Broadcast)), others[0])
        others.remove(first)
        name = self.cast(first[1], dtype)
        return (name, False) if first[0] == 1 else (f"{name} * {first[0]!r}", True)

    def _row(self, t: Expr) -> Expr | None:
        """The row that a term repeats, where it is there: in a call for small values only what it repeats to may be."""
        row = t.x if isinstance(t, Broadcast) and t.axes == (t.ndim - 1,) else None
        return row if row in self.names else None

    def _times(self, c: float, e: Contract, dtype: str) -> str:
        """A number times a matrix product, in one call."""
        zero, pair, back = self.table(sympy.Integer(0), (), dtype), self._pair(e), ""
        if e in self.transposed:
            pair, back = turn(pair), ".t()"
        return f"torch.addmm({zero}, {', '.join(pair)}, beta=0, alpha={c!r}){back}"

    def _owned(self, term: tuple[float, Expr], dtype: str) -> bool:
        c, t = term
        return c == 1 and t in self.fresh and self.uses[t] == 1 and self.types[t] == dtype

    def _pair(self, e: Contract) -> tuple[str, str]:
        pair = matrix_operands(e, *self.operands(e))
        assert pair is not None
        return pair

    def _scaled(self, t: Expr) -> tuple[float, Expr]:
        if isinstance(t, Scale) and t in self.deferred:
            return float(t.factor), t.x
        return 1.0, t

    def product(self, e: Contract) -> str:
        """Text of a product of two."""

        def reshape(text: str, shape: list[str]) -> str:
            return self.reshaped(text, ", ".join(shape), "bfloat16" if self.halved(e) else self.types[e])

        text = product(e, *self.operands(e), self.dimension, reshape, e in self.transposed)
        return f"{text}.to(torch.float32)" if self.halved(e) else text

    def reshaped(self, text: str, shape: str, dtype: str) -> str:
        """Text of a tensor in another shape, whose axes may have been turned."""
        if self.kernels is not None and dtype == "float32" and self.kernels.ready():
            return f"native_reshape({text}, ({shape},))"
        return f"{text}.reshape({shape})"


def _alpha(c: float) -> str:
    return "" if c == 1 else f", alpha={c!r}"
