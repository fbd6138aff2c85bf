"""Which steps of a program go into one tile program, and which are left to torch.

A part is everything between tensors in memory and one result. Products with three long extents are left to the vendor's
library, and so is what has no tiles (transforms, solvers, factorisations). What is elementwise, or moves entries, goes
into what reads it, unless that would compute much over and over again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

from adaptc.codegen.gather import slices
from adaptc.codegen.kernel import is_short_choice, is_small_system, keeps_entries
from adaptc.codegen.lower import LEAST as TERMS
from adaptc.codegen.lower import ONE_BY_ONE, Sum, sum_of
from adaptc.codegen.nodes import affine
from adaptc.codegen.product import groups
from adaptc.codegen.types import Types
from adaptc.ir.dims import Dim, Shape
from adaptc.ir.expr import Expr
from adaptc.ir.prims import (
    Add,
    At,
    Broadcast,
    Constant,
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
)
from adaptc.plan.plan import reach

LONG = 128  # an extent of a product that a vendor's library is good at
MANY = 1 << 14  # tokens: more than any size of a layer, for comparisons
LEAST = 2  # rows and columns of a product of tiles
FULL = 1 << 18  # entries of a result that keep all processors of a device busy
LIGHT = 2  # tensors that are read, and operations, of what is computed again where it is read


@dataclass(frozen=True, eq=False)
class Part:
    """One result of a tile program. path: from its product of tiles up to the root; empty where there is none.

    split: a sum over tokens with few results, done in parts by many programs, and then over the parts.
    """

    root: Expr
    inputs: tuple[Expr, ...]
    path: tuple[Expr, ...]
    split: Expr | None = None
    scatters: bool = False


def long(d: Dim) -> int:
    """A size as a number; tokens are many."""
    return d if isinstance(d, int) else MANY


def size_of(shape: Shape) -> int:
    """Entries of a tensor; tokens are many."""
    return prod(map(long, shape))


def is_tiled(e: Expr) -> bool:
    """Is there a tile program for a node, by itself?"""
    if e.kind != "real" or any(c.kind == "complex" for c in e.children):
        return False
    if isinstance(e, Scale):
        return not hasattr(e.factor, "free_symbols") or not e.factor.free_symbols
    if isinstance(e, (Solve, TopK)):
        return is_small_system(e) or is_short_choice(e)
    return isinstance(e, (Add, Broadcast, Contract, Detach, Draw, Map, Put, Reduce, Reshape, Take))


def is_view(e: Expr) -> bool:
    """Needs a node no work in torch?"""
    if isinstance(e, (Reshape, Detach)) or (isinstance(e, Contract) and len(e.operands) == 1):
        return True
    return isinstance(e, Take) and slices(e.index, e.size) is not None


def is_scatter(e: Expr) -> bool:
    """Are entries added to places that are not in order?"""
    return isinstance(e, Put) and affine(e.index, e.x.ndim) is None


def is_whole(e: Expr) -> bool:
    """Whole numbers that a kernel can compute where it reads them."""
    return e.kind == "integer" and isinstance(e, (Add, Map, Reshape, Scale, Take))


def is_number(e: Expr) -> bool:
    """A constant that is one number in every entry."""
    return isinstance(e, Constant) and not isinstance(e.value, tuple) and bool(e.value.is_number)


def is_vendors(e: Expr) -> bool:
    """A product of three long extents."""
    s = sum_of(e)
    if s is None or not isinstance(e, Contract) or s.op != "sum" or len(s.operands) != 2:
        return False
    g = groups(e)
    return all(size_of(tuple(s.sizes[c] for c in t)) >= LONG for t in (g.left, g.right, s.summed))


def is_dot(e: Expr) -> bool:
    """A product of tiles: with rows from one operand and columns from the other, and enough to sum."""
    s = sum_of(e)
    if s is None or not isinstance(e, Contract) or len(s.operands) != 2:
        return False
    g = groups(e)
    if any(not isinstance(s.sizes[c], int) for c in g.batch):
        return False
    rows, columns = (size_of(tuple(s.sizes[c] for c in t)) for t in (g.left, g.right))
    return min(rows, columns) >= LEAST and size_of(tuple(s.sizes[c] for c in s.summed)) >= TERMS


def like(a: Expr, b: Expr) -> bool:
    """Have two products of tiles the same rows and columns?"""
    assert isinstance(a, Contract)
    assert isinstance(b, Contract)
    ga, gb = groups(a), groups(b)
    sizes = []
    for e, g in ((a, ga), (b, gb)):
        s = sum_of(e)
        assert s is not None
        sizes.append((len(g.batch), [size_of(tuple(s.sizes[c] for c in t)) for t in (g.batch, g.left, g.right)]))
    return sizes[0] == sizes[1] and a.dims == b.dims and _order(a) == _order(b)


def _order(e: Contract) -> tuple[str, ...]:
    g = groups(e)
    return tuple("b" if c in g.batch else "l" if c in g.left else "r" for c in e.terms[1])


def sums_tokens(e: Expr) -> bool:
    """Does a sum go over tokens?"""
    s = sum_of(e)
    return s is not None and any(not isinstance(s.sizes[c], int) for c in s.summed)


@dataclass
class Fusion:
    """The parts of one program. given: tensors in memory before it starts. inside: long products that are not left to
    the vendor's library."""

    results: Sequence[Expr]
    given: Iterable[Expr]
    types: Types
    inside: frozenset[Expr] = frozenset()
    parts: dict[Expr, Part] = field(default_factory=dict)
    wanted: dict[Expr, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.there = set(self.given)
        self.order = [e for e in reach(self.results, list(self.there)) if e not in self.there]
        self.uses: Counter[Expr] = Counter(c for e in self.order for c in e.children)
        self.uses.update(self.results)
        again: dict[Expr, None] = {}
        while True:  # what one part needs in memory, another reads there
            self.parts, self.wanted = {}, dict(again)
            for e in self.results:
                self.want(e)
            for e in again:
                self.want(e)
            if self.wanted.keys() <= again.keys():
                break
            again = self.wanted

    def in_memory(self, e: Expr) -> bool:
        """Is a node a tensor before the program starts, or made by torch at its start?"""
        return e in self.there or isinstance(e, (Leaf, Table)) or (isinstance(e, Constant) and not is_number(e))

    def is_products(self, e: Expr) -> bool:
        """Is a node a product that the vendor's library computes?"""
        return e not in self.inside and is_tiled(e) and is_vendors(e)

    def foreign(self, e: Expr) -> bool:
        """Is a node left to torch?"""
        return not is_tiled(e) or self.is_products(e)

    def want(self, e: Expr) -> None:
        """A node must be a tensor in memory."""
        stack = [e]
        while stack:
            e = stack.pop()
            if self.in_memory(e) or is_number(e) or e in self.parts:
                continue
            base = e
            while is_view(base) and not self.in_memory(base) and base not in self.parts:
                base = base.children[0]
            if base is not e and (self.in_memory(base) or self.foreign(base) or base in self.wanted):
                stack.append(base)  # torch looks at it otherwise
                stack += [entry.table for entry in getattr(e, "index", ()) if isinstance(entry, At)]
                continue
            if self.foreign(e):
                stack += e.children
                continue
            self.wanted[e] = None
            part = self.part(e)
            self.parts[e] = part
            stack += part.inputs

    def products(self) -> list[Expr]:
        """The products that the vendor's library computes."""
        return [e for e in self.order if self.is_products(e)]

    def users(self, e: Expr) -> list[Expr]:
        """What reads a node, seen through views."""
        found: list[Expr] = []
        for u in self.order:
            if e in u.children:
                found += self.users(u) if is_view(u) else [u]
        return found

    # ------------------------------------------------------------------ one part

    def part(self, root: Expr) -> Part:
        """Everything that goes into the kernel of a root."""
        if is_scatter(root):
            reader = _Reader(self, root, ())
            reader.read(root, bijective=False)
            return Part(root, tuple(reader.inputs), (), scatters=True)
        path = self.path(root)
        sums = [path[0]] if path else [e for e in self.upward(root) if sum_of(e) is not None][:1]
        found: dict[Expr, None] = {}
        inner = _Reader(self, root, path)
        inner.read(root, bijective=True)
        found = inner.inputs
        split = next((h for h in sums if sums_tokens(h) and size_of(h.dims) < FULL and len(inner.sums) == 1), None)
        return Part(root, tuple(found), tuple(path), split)

    def upward(self, root: Expr) -> list[Expr]:
        """Nodes with an entry for every entry of the root, that it alone reads."""
        found, stack = [], [root]
        while stack:
            e = stack.pop()
            found.append(e)
            if sum_of(e) is None:
                stack += [c for c in e.children if keeps_entries(e, c) and self.alone(c)]
        return found

    def alone(self, c: Expr) -> bool:
        """Is a node read once, and not in memory for any other reason?"""
        return self.uses[c] == 1 and c not in self.wanted and not self.in_memory(c) and not self.foreign(c)

    def path(self, root: Expr) -> list[Expr]:
        """From the largest product of tiles up to the root."""
        best: list[Expr] = []
        stack: list[list[Expr]] = [[root]]
        while stack:
            trail = stack.pop()
            e = trail[0]
            if isinstance(e, (Solve, TopK)):
                return trail
            if is_dot(e):
                best = max(best, trail, key=lambda t: _work(t[0]) if t else 0)
            elif sum_of(e) is None:
                stack += [[c, *trail] for c in e.children if keeps_entries(e, c) and self.alone(c)]
        return best


def _work(e: Expr) -> int:
    s = sum_of(e)
    return size_of(tuple(s.sizes.values())) if s else 0


@dataclass
class _Reader:
    """Follows a root down to what its kernel reads."""

    fusion: Fusion
    root: Expr
    path: Sequence[Expr]
    inputs: dict[Expr, None] = field(default_factory=dict)
    sums: list[Expr] = field(default_factory=list)
    seen: set[tuple[Expr, bool]] = field(default_factory=set)

    def read(self, e: Expr, bijective: bool) -> None:
        """A node, computed in this kernel or read from memory. bijective: at the entries of the root."""
        if (e, bijective) in self.seen:
            return
        self.seen.add((e, bijective))
        if is_number(e):
            return
        if e is not self.root and self.cut(e, bijective):
            self.inputs[e] = None
            return
        s = sum_of(e)
        if s is not None:
            self.sums.append(e)
        for c in e.children:
            self.read(c, bijective and s is None and keeps_entries(e, c))

    def cut(self, e: Expr, bijective: bool) -> bool:
        """Is a node read from memory?"""
        f = self.fusion
        if f.in_memory(e) or e in f.wanted:
            return True
        if is_whole(e):
            return False
        if f.foreign(e) or is_scatter(e) or (isinstance(e, (Solve, TopK)) and e not in self.path[:1]):
            return True
        s = sum_of(e)
        if s is not None:
            return not self.joins(e, s, bijective)
        if isinstance(e, Draw) or is_view(e) or isinstance(e, Broadcast):
            return False
        if bijective and f.uses[e] == 1:
            return False
        if not self.is_light(e):
            return f.uses[e] > 1 or 4 * size_of(e.dims) < size_of(self.root.dims) or self.sums != []
        return False

    def joins(self, e: Expr, s: Sum, bijective: bool) -> bool:
        """Is a sum done in this kernel?"""
        f = self.fusion
        short = size_of(tuple(s.sizes[c] for c in s.summed)) <= ONE_BY_ONE
        if not bijective or f.uses[e] > 1:
            return short and self.is_light(e, 2) and f.uses[e] == 1
        if self.path:
            return e is self.path[0] or (is_dot(e) and is_dot(self.path[0]) and like(e, self.path[0])) or short
        return short or not any(
            size_of(tuple(t.sizes[c] for c in t.summed)) > ONE_BY_ONE for t in map(sum_of, self.sums) if t
        )

    def is_light(self, e: Expr, most: int = LIGHT) -> bool:
        """Does it take little to compute a node again, from what is in memory?"""
        reads, work, stack = 0, 0, [e]
        while stack:
            t = stack.pop()
            if self.fusion.in_memory(t) or t in self.fusion.wanted or self.fusion.foreign(t):
                reads += 1
            elif is_number(t):
                continue
            else:
                if t is not e and sum_of(t) is not None:
                    return False
                work += 0 if is_view(t) or isinstance(t, (Broadcast, Scale, Take, Put)) else 1
                if isinstance(t, Map):
                    work += int(t.fn.count_ops()) > 2
                stack += t.children
            if reads > most or work > most:
                return False
        return True
