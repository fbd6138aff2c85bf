"""Random adapters: every plan tried gives y and all gradients of the dense float64 reference."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from random import Random

import pytest
import torch
from strategies import DEPTH, ROWS, Draws, bias_form, draw_leaf, leaves, output_form, weight_form

import adaptc as ac
from adaptc.ir.algebra import linear
from adaptc.ir.dims import TOKENS
from adaptc.ir.expand import expand
from adaptc.ir.expr import Expr, postorder, rewrite
from adaptc.ir.matrix import Initial
from adaptc.ir.operator import AbstractOperator
from adaptc.ir.prims import Leaf, Primitive
from adaptc.ir.printer import formula
from adaptc.ir.rules import Rule, forms, simplify
from adaptc.ir.vjp import vjp
from adaptc.plan.evaluate import evaluate
from adaptc.plan.search import candidates, plan
from adaptc.runtime.attach import Wholes, attach
from adaptc.runtime.planning import task_of
from adaptc.runtime.program import assemble
from adaptc.runtime.reference import Evaluator
from adaptc.runtime.stack import Stack, stack

SIZES = ((12, 8), (8, 8), (6, 10), (16, 4), (7, 5), (9, 1), (1, 6))
CONDITION = 1e-3
"""A draw counts when the reference in float32 is its own value in float64 to this."""
BOUND = 500 * CONDITION * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
"""What float64 may then differ by: 9e-10, 500 times the rounding that float32 may have shown."""


@dataclass(frozen=True)
class Case:
    """A drawn adapter on a layer with values."""

    method: ac.Method
    seed: int

    @cached_property
    def stack(self) -> Stack:
        n, k = SIZES[self.seed % len(SIZES)]
        return stack(((self.method(seed=self.seed).trace(n, k), 0.0),), n, k, True, True)

    @cached_property
    def wants(self) -> tuple[bool, ...]:
        trained = ("token", "weight", "bias", "param")
        return tuple(leaf.role in trained for leaf in self.stack.arguments)

    @cached_property
    def tensors(self) -> list[torch.Tensor]:
        s, generator = self.stack, torch.Generator().manual_seed(self.seed)
        x, W, bias = (draw_leaf(leaf, generator) for leaf in s.arguments[:3])
        start = attach(s.equations[0], W, Wholes())
        given = [start[leaf.name] for leaf in s.leaves[0]]
        moved = [t + 0.1 * t.sin() if t.is_floating_point() else t for t in given]
        seed = [draw_leaf(leaf, generator) for leaf in s.arguments[len(moved) + 3 :]]
        return [x, W, bias, *moved, *seed]

    def results(self, call, dtype=torch.float64) -> list[torch.Tensor]:
        """y and the gradient of everything that wants one."""
        cast = [t.to(dtype) if t.is_floating_point() else t.clone() for t in self.tensors]
        arguments = [t.detach().requires_grad_(w) for t, w in zip(cast, self.wants, strict=True)]
        y = call(arguments)
        shown = y.detach()
        gy = draw_leaf(self.stack.gy, torch.Generator().manual_seed(7)).to(dtype)
        wanted = [t for t, w in zip(arguments, self.wants, strict=True) if w]
        found = torch.autograd.grad(y, wanted, gy, allow_unused=True)
        pairs = zip(wanted, found, strict=True)
        return [t.double() for t in (shown, *(torch.zeros_like(t) if g is None else g for t, g in pairs))]

    def reference(self, dtype=torch.float64) -> list[torch.Tensor]:
        def call(arguments):
            values = dict(zip(self.stack.arguments, arguments, strict=True))
            return Evaluator(values, dtype, rows=ROWS)(self.stack.output)

        return self.results(call, dtype)

    def plans(self):
        """The chosen plan, two further candidates, and two with every choice drawn."""
        task, rng = task_of(self.stack, self.wants, "cpu"), Random(self.seed)
        yield plan(task)
        yield from islice(candidates(task), 1, 3)
        met = evaluate(task, {})[1]
        for _ in range(2):
            yield evaluate(task, {site: rng.choice(c.options) for site, c in met.items()})[0]

    def errors(self, expected):
        """How far each plan is off, the worst result of each."""
        dtypes = [str(t.dtype).removeprefix("torch.") for t in self.tensors]
        for one in self.plans():
            program = assemble(one, self.stack, dtypes)
            yield one, far(self.results(lambda a, p=program: p.call(*a)), expected)


def far(found, expected):
    """The largest error of a result against its size, or a thousandth of the largest size."""
    largest = max(float(e.norm()) for e in expected)
    if not all(f.isfinite().all() for f in found):
        return float("inf")
    assert [f.shape for f in found] == [e.shape for e in expected]
    pairs = zip(found, expected, strict=True)
    return max(float((f - e).norm() / max(float(e.norm()), CONDITION * largest)) for f, e in pairs)


def compare(case):
    """Hold every plan of a well-conditioned draw to the bound; say whether it was one."""
    expected = case.reference()
    if far(case.reference(torch.float32), expected) > CONDITION:
        return False
    for one, error in case.errors(expected):
        assert error < BOUND, (
            f"{case.method.name}(seed={case.seed}) is off by {error:.1e}: "
            f"{formula(case.stack.output)}\nchoices: {[c.chosen for c in one.choices]}"
        )
    return True


BLOCK, LEAST = 8, 6
CASES = [(m, b * BLOCK) for m, blocks in ((weight_form, 4), (bias_form, 2), (output_form, 2)) for b in range(blocks)]


@pytest.mark.parametrize(("method", "start"), CASES, ids=lambda v: getattr(v, "name", v))
def test_every_plan_is_the_reference(method, start):
    good = [compare(Case(method, seed)) for seed in range(start, start + BLOCK)]
    assert sum(good) >= LEAST, f"{good.count(False)} of {BLOCK} draws are ill-conditioned"


def test_the_reference_can_disagree():
    """A plan of another equation is told apart."""
    case = Case(weight_form, 0)
    wrong = case.reference()
    wrong[1] = wrong[1] * (1 + 10 * BOUND)
    assert far(case.reference(), wrong) > BOUND


# --------------------------------------------------------------------------- what draws reach


def depth(root):
    """Nodes on the longest way down."""
    levels = {}
    for e in postorder(root):
        levels[e] = 1 + max((levels[c] for c in e.children), default=0)
    return levels[root]


def attached(root):
    """Values of the attach stage as leaves."""

    def leaf(e: Expr):
        return Leaf(f"i{e.digest}", e.dims, "attach") if isinstance(e, Initial) else None

    return rewrite(root, leaf)


def composed(count):
    """Draws at least three deep, of at least two operators."""
    for seed in range(count):
        n, k = SIZES[seed % len(SIZES)]
        root = Draws(Random(seed), Leaf("W", (n, k), "weight")).matrix(n, k, DEPTH)
        operators = [e for e in postorder(root) if isinstance(e, AbstractOperator)]
        if depth(root) >= 3 and len(operators) >= 2:
            yield root, operators


def fired(root):
    """Names of the rules that rewrite the tree, or give it another form."""
    always = [r for r in Rule.registry.values() if not r.form]
    found = {r.name for r in always for e in postorder(root) if r.rewrite(e) is not None}
    return found.union(*(forms(e) for e in postorder(simplify(root))))


def reached(root):
    """Names of the primitives of the forward and backward of x @ root.T."""
    n, k = root.dims
    y = expand(linear(Leaf("x", (TOKENS, k), "token"), attached(simplify(root))))
    gradients = vjp(y, Leaf("gy", (TOKENS, n), "gradient"), leaves(y))
    return {type(e).__name__ for e in postorder(y, *gradients.values())}


def test_draws_reach_everything():
    operators, rules, primitives, draws = Counter(), Counter(), Counter(), 0
    for draws, (root, found) in enumerate(composed(1000), 1):
        operators.update({e.name for e in found})
        rules.update(fired(root))
        if draws % 3 == 0:
            primitives.update(reached(root))
    assert draws >= 300
    for counts, registry in (
        (operators, AbstractOperator.registry),
        (rules, Rule.registry),
        (primitives, Primitive.registry),
    ):
        ours = {name: counts[name] for name, c in registry.items() if built_in(c)}
        assert min(ours.values()) > 0, f"of {draws} draws: {ours}"


def built_in(entry):
    """Was it registered by the package rather than by another test?"""
    return getattr(entry, "rewrite", entry).__module__.startswith("adaptc.")


def test_output_forms_reach_their_leaves():
    """The drawn outputs use x, y, W and the bias, softmax, experts and bends."""
    seen: Counter[str] = Counter()
    for seed in range(30):
        traced = output_form(seed=seed).trace(6, 4)
        nodes = postorder(traced.output)
        seen.update({e.name for e in nodes if isinstance(e, Leaf)})
        seen.update({type(e).__name__ for e in nodes})
    wanted = {"x", "y", "bias", "W", "Reduce", "Map", "Contract"}
    assert wanted <= set(seen), seen
