"""The order of a contraction: dynamic programming over subsets of its operands, the token matrix among them.

An intermediate that some other contraction of the task already has is free. That is how the backward finds
what the forward computed: both name it by the same canonical contraction.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from string import ascii_letters

from adaptc.ir.build import contract
from adaptc.ir.dims import TOKENS, Dim
from adaptc.ir.expand import FLAT, settled
from adaptc.ir.expr import Expr, postorder, rewrite_all
from adaptc.ir.prims import Contract, Leaf
from adaptc.plan.device import Device
from adaptc.plan.plan import depends_on_tokens

ITEM = 4  # bytes of an entry in predictions
ALIKE = 1.01  # times the time of the best order: as good
CHOICES = 3  # orders of one contraction that the search may weigh

Name = tuple[str, tuple[Expr, ...]]
PickOrder = Callable[[Contract, int], int]


@dataclass
class Orders:
    """Orders the contractions of one task; remembers what is computed."""

    device: Device
    size: Callable[[Dim], int]
    pick: PickOrder = lambda node, count: 0
    bare: bool = False  # of orders that take as long, one that ends in a matrix of the layer: others may end in it too
    known: dict[Name, Expr] = field(default_factory=dict)
    sets: set[tuple[Expr, ...]] = field(default_factory=set)

    def remember(self, name: Name, tree: Expr) -> Expr:
        """Know a value by its canonical name; the first stays."""
        self.sets.add(name[1])
        return self.known.setdefault(name, tree)

    def learn(self, value: Expr) -> None:
        """A value, ordered already, that is to be had for nothing."""
        (flat,) = settled([value])
        if isinstance(flat, Contract) and len(flat.operands) > 1:
            search = _Search(self, flat)
            kept = search.kept(search.full)
            self.remember(search.canonical(search.full), contract(f"{search.out}->{kept}", value))

    def forget(self, values: Sequence[Expr], but: Sequence[Expr] = ()) -> None:
        """Values that are not to be had for nothing, and what was made of them, but for some."""
        there = set(but)
        lost = set(values) - there
        for e in postorder(*self.known.values()):
            if e not in there and not lost.isdisjoint(e.children):
                lost.add(e)
        self.known = {name: tree for name, tree in self.known.items() if tree not in lost}

    def order(self, root: Expr) -> Expr:
        """Every contraction below root as products of two."""
        return self.order_all([root])[0]

    def order_all(self, roots: Sequence[Expr]) -> list[Expr]:
        """The same for several roots, what they share once."""
        return rewrite_all(roots, lambda e: self._contraction(e) if isinstance(e, Contract) else None)

    def _contraction(self, node: Contract) -> Expr:
        name = (node.spec, node.operands)
        if len(node.operands) == 1:
            return node
        if name not in self.known:
            search = _Search(self, node)
            roots = search.roots() if len(node.operands) > 2 else [(0.0, 1, 2)]
            at = self.pick(node, len(roots)) if len(roots) > 1 else 0
            return self.remember(name, search.finish(roots[min(at, len(roots) - 1)]))
        return self.known[name]


@functools.lru_cache(maxsize=4096)
def _searched(key: object) -> tuple[dict[int, float], dict[int, tuple[int, int]]]:
    """Costs and best splits of the subsets of one contraction, filled in as they are asked for."""
    return {}, {}


class _Search:
    """The subsets of one contraction, by bit mask."""

    def __init__(self, orders: Orders, node: Contract) -> None:
        self.orders = orders
        inputs, self.out = node.terms
        pairs = sorted(zip(inputs, node.operands, strict=True), key=lambda t: (t[1].digest, t[0]))
        while len(pairs) > FLAT:
            pairs = self._greedy(pairs)
        self.letters = [t for t, _ in pairs]
        self.operands = [op for _, op in pairs]
        self.full = (1 << len(self.operands)) - 1
        self.sizes = {c: orders.size(d) for t, op in pairs for c, d in zip(t, op.dims, strict=True)}
        self._bits = {c: 1 << j for j, c in enumerate(self.sizes)}
        self._each = [sum(self._bits[c] for c in set(t)) for t in self.letters]
        self._out = sum(self._bits[c] for c in self.out)
        self._results: dict[int, int] = {}
        self._counts: dict[int, int] = {}
        self.tokens = {c for t, op in pairs for c, d in zip(t, op.dims, strict=True) if d == TOKENS}
        self.trees: dict[int, Expr] = {1 << j: op for j, op in enumerate(self.operands)}
        self.outs: dict[int, str] = {1 << j: t for j, t in enumerate(self.letters)}
        self._reuse()

    def _reuse(self) -> None:
        """What this contraction cost before, with the same subsets known: searches repeat between assignments."""
        known: dict[int, Expr] = {}
        picked: list[tuple[Expr, ...]] = [()]
        for mask in range(1, self.full + 1):
            last = mask.bit_length() - 1
            picked.append((*picked[mask ^ (1 << last)], self.operands[last]))
            if mask & (mask - 1) and picked[mask] in self.orders.sets:
                tree = self.orders.known.get(self.canonical(mask))
                if tree is not None:
                    known[mask] = tree
        key = (tuple(self.letters), tuple(self.operands), self.out, tuple(self.sizes.items()), self.orders.device.name)
        self.cost, self.parts = _searched((key, tuple(known.items())))
        self.cost.update({1 << j: 0.0 for j in range(len(self.operands))})
        self.cost.update(dict.fromkeys(known, 0.0))
        self.trees.update(known)

    def kept(self, mask: int) -> str:
        """Letters of a subset's result: those met again outside; tokens first, then as they appear."""
        if mask not in self.outs:
            result = self.result(mask)
            inside = dict.fromkeys(c for j, t in enumerate(self.letters) if mask >> j & 1 for c in t)
            letters = [c for c in inside if self._bits[c] & result]
            self.outs[mask] = "".join(sorted(letters, key=lambda c: c not in self.tokens))
        return self.outs[mask]

    def result(self, mask: int) -> int:
        """The letters of a subset's result, as bits."""
        if mask not in self._results:
            inside, outside = 0, self._out
            for j, letters in enumerate(self._each):
                if mask >> j & 1:
                    inside |= letters
                else:
                    outside |= letters
            self._results[mask] = inside & outside
        return self._results[mask]

    def canonical(self, mask: int) -> Name:
        """The subset as one contraction, letters in order of appearance: its name in `known`."""
        picked = [j for j in range(len(self.operands)) if mask >> j & 1]
        return spell([self.letters[j] for j in picked], self.kept(mask)), tuple(self.operands[j] for j in picked)

    def solve(self, mask: int) -> float:
        """The seconds of the cheapest way to a subset."""
        if mask not in self.cost:
            self.cost[mask], *split = min(self.splits(mask, self.result(mask)))
            self.parts[mask] = (split[0], split[1])
        return self.cost[mask]

    def tree(self, mask: int) -> Expr:
        """The value of a subset as products of two; what it computes on the way is known from now on."""
        if mask not in self.trees:
            tree = self.join(*self.parts[mask], self.kept(mask))
            self.trees[mask] = self.orders.remember(self.canonical(mask), tree)
        return self.trees[mask]

    def splits(self, mask: int, result: int) -> list[tuple[float, int, int]]:
        """Every way to make a subset of two."""
        found = []
        part = (mask - 1) & mask
        while 2 * part > mask:
            other = mask ^ part
            before = self.solve(part) + self.solve(other)
            found.append((before + self.seconds(self.result(part), self.result(other), result), part, other))
            part = (part - 1) & mask
        return found

    def seconds(self, left: int, right: int, out: int) -> float:
        """Time of one product of two tensors by their letters."""
        work = self._count(left | right)
        moved = self._count(left) + self._count(right) + self._count(out)
        flops = 2 * work if left & right & ~out else work
        return self.orders.device.seconds(flops, ITEM * moved)

    def _count(self, letters: int) -> int:
        total = self._counts.get(letters)
        if total is None:
            total = 1
            for c, bit in self._bits.items():
                if letters & bit:
                    total *= self.sizes[c]
            self._counts[letters] = total
        return total

    def join(self, left: int, right: int, out: str) -> Expr:
        """The product of two subsets, operands in a stable order."""
        a, la, b, lb = self.tree(left), self.kept(left), self.tree(right), self.kept(right)
        if (b.digest, lb) < (a.digest, la):
            a, la, b, lb = b, lb, a, la
        return Contract(spell([la, lb], out), (a, b))

    def roots(self) -> list[tuple[float, int, int]]:
        """The best last products, cheapest first: what the planner may choose among."""
        if self.full in self.trees:
            return [(0.0, 0, 0)]
        found = sorted(self.splits(self.full, self._out))
        if self.orders.bare:
            good = ALIKE * found[0][0]
            found.sort(key=lambda root: (root[0] > good or not self._ends_bare(root), root[0]))
        return found[:CHOICES]

    def _ends_bare(self, root: tuple[float, int, int]) -> bool:
        """Is a matrix of the layer the one operand of the last product?"""
        ends = [self.operands[part.bit_length() - 1] for part in root[1:] if part & (part - 1) == 0]
        return any(isinstance(e, Leaf) and e.ndim == 2 and not depends_on_tokens(e) for e in ends)

    def finish(self, root: tuple[float, int, int]) -> Expr:
        """The tree whose last product is `root`; remembered under its canonical name."""
        canonical_out = self.kept(self.full)
        if self.full in self.trees:
            return contract(f"{canonical_out}->{self.out}", self.trees[self.full])
        tree = self.join(root[1], root[2], self.out)
        self.orders.remember(self.canonical(self.full), contract(f"{self.out}->{canonical_out}", tree))
        return tree

    def _greedy(self, pairs: list[tuple[str, Expr]]) -> list[tuple[str, Expr]]:
        """Too many operands to search: multiply the pair with the smallest result first."""
        sizes = {c: self.orders.size(d) for t, op in pairs for c, d in zip(t, op.dims, strict=True)}

        def result(i: int, j: int) -> str:
            rest = set(self.out).union(*(t for a, (t, _) in enumerate(pairs) if a not in (i, j)))
            return "".join(c for c in dict.fromkeys(pairs[i][0] + pairs[j][0]) if c in rest)

        def volume(pair: tuple[int, int]) -> int:
            total = 1
            for c in result(*pair):
                total *= sizes[c]
            return total

        i, j = min(combinations(range(len(pairs)), 2), key=volume)
        joined = contract(f"{pairs[i][0]},{pairs[j][0]}->{result(i, j)}", pairs[i][1], pairs[j][1])
        return [p for a, p in enumerate(pairs) if a not in (i, j)] + [(result(i, j), joined)]


def spell(terms: list[str], out: str) -> str:
    """An einsum with its letters renamed in order of appearance."""
    names = dict(zip(dict.fromkeys("".join(terms)), ascii_letters, strict=False))
    return f"{','.join(''.join(names[c] for c in t) for t in terms)}->{''.join(names[c] for c in out)}"
