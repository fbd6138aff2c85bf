"""Random expressions from one seed, and values for their leaves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from math import prod
from random import Random

import sympy
import torch

import adaptc as ac
from adaptc.ir import algebra, build, random
from adaptc.ir.dims import TOKENS, value
from adaptc.ir.expr import Expr, postorder, rewrite, substitute
from adaptc.ir.functions import ELEMENTWISE
from adaptc.ir.matrix import Initial
from adaptc.ir.operator import AbstractOperator
from adaptc.ir.prims import INDEX, Draw, Leaf
from adaptc.ir.rules import Rule, simplify

ROWS = 5  # of x in every test
DEPTH = 4  # of a random adapter
ARITY = {name: len(fn.free_symbols) for name, fn in ELEMENTWISE.items()}
POSITIVE = ("log", "sqrt")  # defined for positive numbers alone
BOUNDED = ("exp",)  # grows too fast for nested expressions

SHAPES = tuple(
    (rows, cols)
    for rows, cols in (
        (2, 2),
        (1, 1),
        (4, 4),
        (8, 8),
        (16, 16),
        (3, 3),
        (7, 7),
        (12, 12),
        (6, 4),
        (5, 3),
        (3, 5),
        (1, 4),
        (6, 1),
    )
)
"""Square, rectangular, prime and one-sized."""


def index_leaf(name: str, length: int, bound: int) -> Leaf:
    """A vector of whole numbers below `bound`, which its name says."""
    return Leaf(f"{name}_below_{bound}", (length,), "frozen", "integer")


def leaves(*roots: Expr) -> list[Leaf]:
    """The leaves below some roots."""
    return [e for e in postorder(*roots) if isinstance(e, Leaf)]


def draw_leaf(leaf: Leaf, generator: torch.Generator, rows: int = ROWS) -> torch.Tensor:
    """Entries in [-1, 1], or whole numbers below the bound in the leaf's name."""
    size = [value(d, {TOKENS: rows}) for d in leaf.dims]
    if leaf.role == "seed":
        return torch.randint(-(2**63), 2**63 - 1, (), generator=generator)
    if leaf.kind == "integer":
        bound = int(leaf.name.rpartition("_")[2])
        return torch.randint(bound, size, generator=generator)
    dtype = torch.complex128 if leaf.kind == "complex" else torch.float64
    parts = torch.rand(*size, 2, dtype=torch.float64, generator=generator) * 2 - 1
    return torch.view_as_complex(parts) if dtype.is_complex else parts[..., 0].clone()


def draw_values(*roots: Expr, seed: int = 0) -> dict[Expr, torch.Tensor]:
    """A value for every leaf below some roots."""
    generator = torch.Generator().manual_seed(seed)
    return {leaf: draw_leaf(leaf, generator) for leaf in leaves(*roots)}


# --------------------------------------------------------------------------- random expressions


class Draws:
    """Random real expressions: a method draws one of the asked shape, at most `depth` deep."""

    def __init__(self, rng: Random, weight: Expr | None = None, tokens: tuple[Expr, ...] = (), first: int = 0) -> None:
        self.rng = rng
        self.weight = weight
        self.starts = tokens
        self.names = count(first)

    def leaf(self, *shape: int) -> Leaf:
        """A new parameter."""
        return build.leaf(f"p{next(self.names)}", *shape)

    def make(self, depth: int) -> Callable[..., Expr]:
        """What `AbstractOperator.sample` draws its parts with."""

        def part(*shape: int, nonzero: bool = False) -> Expr:
            return self.nonzero(shape, depth) if nonzero else self.tensor(shape, depth)

        return part

    def nonzero(self, shape: tuple[int, ...], depth: int) -> Expr:
        """Far from zero: 2 + tanh entry by entry, or columns near those of 3 I."""
        if len(shape) != 2:
            return 2 + algebra.elementwise("tanh", self.tensor(shape, depth))
        near = 3 * sympy.KroneckerDelta(INDEX[0], sympy.Mod(INDEX[1], shape[0]))
        small = algebra.elementwise("sin", self.matrix(*shape, depth))
        return build.constant(near, shape) + build.scale(1 / prod(shape), small)

    def tensor(self, shape: tuple[int, ...], depth: int) -> Expr:
        """Any number of axes."""
        if depth <= 0 or not shape or self.rng.random() < 0.25:
            return self.leaf(*shape)
        if len(shape) == 2:
            return self.matrix(*shape, depth)
        if len(shape) == 1:
            return self.vector(shape[0], depth)
        rows = prod(shape[: len(shape) // 2])
        flat = self.matrix(rows, prod(shape) // rows, depth - 1)
        return algebra.reshape(flat, shape)

    def vector(self, n: int, depth: int) -> Expr:
        """One axis."""
        k = self.rng.randrange(1, 5)
        M = self.matrix(n, k, depth - 1)
        match self.rng.randrange(6):
            case 0:
                return algebra.norm(M, axis=1)
            case 1:
                return algebra.total(M, axis=1)
            case 2:
                return algebra.mean(M.T, axis=0)
            case 3:
                return algebra.maximum_along(M, axis=1)
            case 4:
                return M @ self.leaf(k)
            case _:
                return M[:, 0]

    def matrix(self, rows: int, cols: int, depth: int) -> Expr:
        """Two axes."""
        if depth <= 0:
            return self._end(rows, cols)
        while True:
            drawn = self.rng.choice(PRODUCTIONS)(self, rows, cols, depth - 1)
            if drawn is not None:
                return drawn

    def fit(self, M: Expr, rows: int, cols: int) -> Expr:
        """Some matrix, or a vector as a column, cut or repeated to a shape."""
        M = build.reshape(M, (*M.dims, 1)) if M.ndim == 1 else M
        return M if M.dims == (rows, cols) else algebra.tile(M, (rows, cols))

    def _end(self, rows: int, cols: int) -> Expr:
        if self.weight is not None and self.rng.random() < 0.3:
            return self.fit(self.weight, rows, cols)
        return self.leaf(rows, cols)

    def operator(self, rows: int, cols: int, depth: int) -> Expr | None:
        """Any registered operator; a complex one is made real by products with others."""
        cls = AbstractOperator.registry[self.rng.choice(sorted(AbstractOperator.registry))]
        e = cls.sample(rows, cols, self.make(depth), self.rng)
        if e is None or e.kind == "real":
            return e
        real = AbstractOperator.registry["real"]
        M: Expr = self.matrix(cols, cols, depth)
        back = cls.sample(cols, cols, self.make(depth), self.rng)
        return real(e @ M @ back if back is not None else e @ M)

    def operators(self, rows: int, cols: int, depth: int) -> Expr | None:
        """A product of two operators."""
        inner = self.rng.choice((rows, cols, 4))
        A, B = self.operator(rows, inner, depth), self.operator(inner, cols, depth)
        return None if A is None or B is None else build.scale(1 / inner, A @ B)

    def example(self, rows: int, cols: int, depth: int) -> Expr:
        """What a rule rewrites, over random parts."""
        rule = Rule.registry[self.rng.choice(sorted(Rule.registry))]
        return self.fit(self.widened(rule, depth), rows, cols)

    def widened(self, rule: Rule, depth: int) -> Expr:
        """A rule's example with its leaves replaced by random expressions of their shapes."""
        e = rule.example()
        parts = {p: self.nonzero(p.dims, depth) for p in leaves(e)}
        if any(isinstance(t, Initial) for t in postorder(e)):  # a value of the attach stage is not random
            parts = {p: rewrite(t, still) for p, t in parts.items()}
        return substitute(e, parts)

    def add(self, rows: int, cols: int, depth: int) -> Expr:
        """A sum with numbers."""
        A, B = self.matrix(rows, cols, depth), self.matrix(rows, cols, depth)
        match self.rng.randrange(3):
            case 0:
                return 0.5 * A + B
            case 1:
                return A - 2 * B
            case _:
                return 1 - A / 3

    def product(self, rows: int, cols: int, depth: int) -> Expr:
        """A matrix product."""
        inner = self.rng.randrange(1, 6)
        A, B = self.matrix(rows, inner, depth), self.matrix(inner, cols, depth)
        return build.scale(1 / inner, A @ B)

    def transpose(self, rows: int, cols: int, depth: int) -> Expr:
        """A transpose."""
        return self.matrix(cols, rows, depth).T

    def times(self, rows: int, cols: int, depth: int) -> Expr:
        """Entry by entry."""
        A = self.matrix(rows, cols, depth)
        match self.rng.randrange(5):
            case 0:
                return A * self.matrix(rows, cols, depth)
            case 1:
                return A / (2 + algebra.elementwise("tanh", self.leaf(rows, cols)))
            case 2:
                return self.nonzero((rows, cols), depth) ** self.rng.choice((2, 3))
            case 3:
                return self.leaf() * A + self.leaf()
            case _:
                return A / (1 + algebra.norm(A))

    def function(self, rows: int, cols: int, depth: int) -> Expr:
        """Any elementwise function, where it is defined."""
        name = self.rng.choice(sorted(ELEMENTWISE))
        M = self.matrix(rows, cols, depth)
        if name in POSITIVE:
            M = 2 + algebra.elementwise("tanh", M)
        if name in BOUNDED:
            M = algebra.elementwise("tanh", M)
        if ARITY[name] == 2:
            other = self.rng.choice((0.25, self.matrix(rows, cols, depth)))
            return self._smooth(algebra.elementwise(name, M, other))
        return self._smooth(algebra.elementwise(name, M))

    def _smooth(self, M: Expr) -> Expr:
        return self.rng.choice((M, algebra.clamp(M, -0.5, 0.75), M + build.detach(M)))

    def masked(self, rows: int, cols: int, depth: int) -> Expr:
        """Some entries alone: the largest of a leaf, or those that dropout leaves; or noise added."""
        M = self.matrix(rows, cols, depth)
        stream = next(self.names)
        match self.rng.randrange(4):
            case 0:
                return algebra.topk(self.leaf(rows, cols), self.rng.randrange(1, rows * cols + 1)) * M
            case 1:
                return algebra.topk(self.leaf(rows, cols), self.rng.randrange(1, cols + 1), axis=1) * M
            case 2:
                return random.drop(M, 0.5, stream)
            case _:
                return M + 0.1 * random.normal((rows, cols), stream)

    def along(self, rows: int, cols: int, depth: int) -> Expr:
        """Softmax, or a matrix scaled by its norms or sums."""
        M, axis = self.matrix(rows, cols, depth), self.rng.randrange(2)
        if self.rng.random() < 0.5:
            return algebra.softmax(M, axis)
        length = algebra.norm(M, axis) if self.rng.random() < 0.5 else algebra.total(M * M, axis)
        return algebra.einsum(f"ij,{'ji'[axis]}->ij", M, 1 / (1 + length))

    def moved(self, rows: int, cols: int, depth: int) -> Expr:
        """Entries picked from a larger or smaller matrix, or several side by side."""
        r, c = self.rng.randrange(1, 5), self.rng.randrange(1, 5)
        match self.rng.randrange(8):
            case 0:
                return self.matrix(rows + r, cols + c, depth)[r:, :-c]
            case 1:
                return self.matrix(2 * rows, cols, depth)[::2]
            case 2:
                return algebra.tile(self.matrix(r, c, depth), (rows, cols))
            case 3:
                return algebra.reshape(self.matrix(cols, rows, depth), (rows, cols))
            case 4:
                at = [self.rng.randrange(r) for _ in range(rows)]
                return algebra.take(self.matrix(r, cols, depth), at, 0)
            case 5:
                at = index_leaf(f"at{next(self.names)}", cols, c)
                return algebra.take(self.matrix(rows, c, depth), at, 1)
            case 6:
                half = self.rng.randrange(1, cols) if cols > 1 else 0
                parts = [self.matrix(rows, d, depth) for d in (half, cols - half) if d]
                return algebra.hstack(parts)
            case _:
                lower = self.rng.random() < 0.5
                return algebra.triangle(self.matrix(rows, cols, depth), lower, r - 2)

    # ----------------------------------------------------------------------- rows of tokens

    def tokens(self, cols: int, depth: int) -> Expr:
        """A matrix with a row per token, made of those given at the start."""
        if depth <= 0:
            t = self.rng.choice(self.starts)
            return t if t.dims[1] == cols else algebra.linear(t, self.leaf(cols, t.dims[1]))
        return self.rng.choice(TOKENWISE)(self, cols, depth - 1)

    def linear(self, cols: int, depth: int) -> Expr:
        """A linear layer, with or without bias."""
        inner = self.rng.randrange(1, 7)
        t, M = self.tokens(inner, depth), self.matrix(cols, inner, depth)
        bias = self.leaf(cols) if self.rng.random() < 0.5 else None
        return algebra.linear(t, M, bias)

    def gate(self, cols: int, depth: int) -> Expr:
        """Experts weighed by a softmax over them."""
        experts, inner = self.rng.randrange(1, 4), self.rng.randrange(1, 5)
        gates = algebra.softmax(self.tokens(experts, depth), axis=1)
        t = self.tokens(inner, depth)
        return algebra.einsum("mg,gnk,mk->mn", gates, self.leaf(experts, cols, inner), t)

    def bent(self, cols: int, depth: int) -> Expr:
        """An elementwise function, a product, a difference, or rows scaled to length one."""
        t = self.tokens(cols, depth)
        match self.rng.randrange(5):
            case 0:
                return t * self.tokens(cols, depth)
            case 1:
                return t - 0.5 * self.tokens(cols, depth)
            case 2:
                return algebra.einsum("mn,m->mn", t, 1 / (1 + algebra.norm(t, axis=1)))
            case 3:
                return self.leaf() * t + 1
            case _:
                smooth = ("relu", "silu", "gelu", "tanh", "sigmoid", "sin", "abs")
                return algebra.elementwise(self.rng.choice(smooth), t)

    def cut(self, cols: int, depth: int) -> Expr:
        """Columns of one matrix, or of several side by side, or blocks of columns turned apart."""
        c = self.rng.randrange(1, 4)
        match self.rng.randrange(3):
            case 0:
                return self.tokens(cols + c, depth)[:, c:]
            case 1:
                parts = [self.tokens(d, depth) for d in (cols, c)]
                return algebra.hstack(parts)[:, :cols]
            case _:
                tiles = algebra.reshape(self.tokens(cols * c, depth), (TOKENS, cols, c))
                turned = algebra.einsum("mgb,gab->mga", tiles, self.leaf(cols, c, c))
                return algebra.total(turned, axis=2)


def still(e: Expr) -> Expr | None:
    """A constant in place of what is drawn in every call."""
    return build.ones(e.dims) if isinstance(e, Draw) else None


PRODUCTIONS = (
    *[Draws.operator] * 6,
    *[Draws.operators] * 2,
    *[Draws.example] * 2,
    *[Draws.product] * 2,
    *[Draws.moved] * 2,
    *[Draws.function] * 2,
    Draws.add,
    Draws.times,
    Draws.along,
    Draws.masked,
    Draws.transpose,
)
TOKENWISE = (Draws.linear, Draws.linear, Draws.gate, Draws.bent, Draws.cut)


# --------------------------------------------------------------------------- random adapters


def declared(*results):
    """The drawn results, every leaf that they depend on a leaf of the adapter."""
    for leaf in leaves(*map(simplify, results)):
        if leaf.role == "seed":
            continue
        if leaf.kind == "integer":
            start = lambda generator, leaf=leaf: draw_leaf(leaf, generator)  # noqa: E731
            ac.frozen(leaf.name, leaf.dims, start, dtype="int64", seed=0)
        elif leaf.role == "param":
            ac.param(leaf.name, leaf.dims, ac.uniform(-1, 1))
    return results if len(results) > 1 else results[0]


def weight_drawn(seed, W):
    """W' of anything."""
    return (Draws(Random(seed), W).matrix(*W.shape, DEPTH),)


def bias_drawn(seed, W, bias):
    """W' and bias'."""
    draws = Draws(Random(seed), W)
    return draws.matrix(*W.shape, DEPTH - 1), bias * draws.vector(W.shape[0], 2) - 1


def output_drawn(seed, W, bias, x, y):
    """y' of the output so far, x, W and the bias."""
    draws = Draws(Random(seed), W, (x, y))
    rows = draws.tokens(W.shape[0], DEPTH - 1)
    return (draws.leaf() * y + rows + algebra.linear(x, W, bias * draws.leaf(W.shape[0])),)


@ac.adapter(identity=False)
def weight_form(W, *, seed):
    return declared(*weight_drawn(seed, W))


@ac.adapter(identity=False)
def bias_form(W, bias, *, seed):
    return declared(*bias_drawn(seed, W, bias))


@ac.adapter(identity=False)
def output_form(W, bias, x, y, *, seed):
    return declared(*output_drawn(seed, W, bias, x, y))


FORMS = {weight_form: weight_drawn, bias_form: bias_drawn, output_form: output_drawn}
"""What each random adapter is drawn by, as it was written: an adapter's equation is simplified."""
