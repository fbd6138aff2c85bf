"""The order of a contraction: dynamic programming over subsets of its operands, the token matrix among them.

An intermediate that some other contraction of the task already has is free. That is how the backward finds
what the forward computed: both name it by the same canonical contraction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from string import ascii_letters

from adaptc.ir.build import contract
from adaptc.ir.dims import TOKENS, Dim
from adaptc.ir.expr import Expr, rewrite
from adaptc.ir.expand import FLAT
from adaptc.ir.prims import Contract
from adaptc.plan.device import Device

ITEM = 4  # bytes of an entry in predictions
CHOICES = 3  # orders of one contraction that the search may weigh

Name = tuple[str, tuple[Expr, ...]]
PickOrder = Callable[[Contract, int], int]


@dataclass
class Orders:
    """Orders the contractions of one task; remembers what is computed."""

    device: Device
    size: Callable[[Dim], int]
    pick: PickOrder = lambda node, count: 0
    known: dict[Name, Expr] = field(default_factory=dict)

    def order(self, root: Expr) -> Expr:
        """Every contraction below root as products of two."""
        return rewrite(root, lambda e: self._contraction(e) if isinstance(e, Contract) else None)

    def _contraction(self, node: Contract) -> Expr:
        name = (node.spec, node.operands)
        if len(node.operands) == 1:
            return node
        if name not in self.known:
            search = _Search(self, node)
            roots = search.roots() if len(node.operands) > 2 else [(0.0, 1, 2)]
            at = self.pick(node, len(roots)) if len(roots) > 1 else 0
            self.known[name] = search.finish(roots[min(at, len(roots) - 1)])
        return self.known[name]


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
        self.sizes = {c: orders.size(d) for t, op in pairs for c, d in zip(t, op.dims, strict=True)}
        self.tokens = {c for t, op in pairs for c, d in zip(t, op.dims, strict=True) if d == TOKENS}
        self.best: dict[int, tuple[float, Expr, str]] = {}
        self.parts: dict[int, tuple[int, int]] = {}
        for j, (t, op) in enumerate(pairs):
            self.best[1 << j] = (0.0, op, t)

    @cached_property
    def full(self) -> int:
        """The mask of all operands."""
        return (1 << len(self.operands)) - 1

    def kept(self, mask: int) -> str:
        """Letters of a subset's result: those met again outside; tokens first, then as they appear."""
        inside = dict.fromkeys(c for j, t in enumerate(self.letters) if mask >> j & 1 for c in t)
        outside = set(self.out).union(*(t for j, t in enumerate(self.letters) if not mask >> j & 1))
        letters = [c for c in inside if c in outside]
        return "".join(sorted(letters, key=lambda c: c not in self.tokens))

    def canonical(self, mask: int, out: str) -> Name:
        """The subset as one contraction, letters in order of appearance: its name in `known`."""
        picked = [j for j in range(len(self.operands)) if mask >> j & 1]
        return spell([self.letters[j] for j in picked], out), tuple(self.operands[j] for j in picked)

    def solve(self, mask: int) -> tuple[float, Expr, str]:
        """The cheapest way to a subset: seconds, tree, letters."""
        if mask not in self.best:
            out = self.kept(mask)
            name = self.canonical(mask, out)
            if name in self.orders.known:
                self.best[mask] = (0.0, self.orders.known[name], out)
            else:
                seconds, left, right = min(self.splits(mask, out), key=lambda s: s[0])
                self.best[mask] = (seconds, self.join(left, right, out), out)
                self.parts[mask] = (left, right)
        return self.best[mask]

    def remember(self, mask: int) -> None:
        """What the chosen tree computes on the way is known to later contractions."""
        if mask in self.parts:
            self.orders.known.setdefault(self.canonical(mask, self.kept(mask)), self.best[mask][1])
            for part in self.parts[mask]:
                self.remember(part)

    def splits(self, mask: int, out: str) -> list[tuple[float, int, int]]:
        """Every way to make a subset of two."""
        found = []
        part = (mask - 1) & mask
        while part:
            other = mask ^ part
            if part > other:
                a, b = self.solve(part), self.solve(other)
                found.append((a[0] + b[0] + self.seconds(a[2], b[2], out), part, other))
            part = (part - 1) & mask
        return found

    def seconds(self, left: str, right: str, out: str) -> float:
        """Time of one product of two tensors by their letters."""
        work = self._count(set(left) | set(right))
        moved = self._count(set(left)) + self._count(set(right)) + self._count(set(out))
        flops = 2 * work if set(left) & set(right) - set(out) else work
        return self.orders.device.seconds(flops, ITEM * moved)

    def _count(self, letters: set[str]) -> int:
        total = 1
        for c in letters:
            total *= self.sizes[c]
        return total

    def join(self, left: int, right: int, out: str) -> Expr:
        """The product of two subsets, operands in a stable order."""
        (_, a, la), (_, b, lb) = self.solve(left), self.solve(right)
        if (b.digest, lb) < (a.digest, la):
            a, la, b, lb = b, lb, a, la
        return Contract(spell([la, lb], out), (a, b))

    def roots(self) -> list[tuple[float, int, int]]:
        """The best last products, cheapest first: what the planner may choose among."""
        name = self.canonical(self.full, self.kept(self.full))
        if name in self.orders.known:
            return [(0.0, 0, 0)]
        return sorted(self.splits(self.full, self.out))[:CHOICES]

    def finish(self, root: tuple[float, int, int]) -> Expr:
        """The tree whose last product is `root`; remembered under its canonical name."""
        canonical_out = self.kept(self.full)
        name = self.canonical(self.full, canonical_out)
        if name in self.orders.known:
            return contract(f"{canonical_out}->{self.out}", self.orders.known[name])
        tree = self.join(root[1], root[2], self.out)
        self.remember(root[1])
        self.remember(root[2])
        self.orders.known[name] = contract(f"{self.out}->{canonical_out}", tree)
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
