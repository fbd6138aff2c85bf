"""Random adapters: every plan tried gives y and all gradients of the dense float64 reference.

One mechanism for the suite (`laws/test_random.py`) and for the long run (`fuzz.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from math import prod
from random import Random

import torch
from strategies import FORMS, ROWS, draw_leaf

import adaptc as ac
from adaptc.equation import Equation
from adaptc.ir.expr import Expr, postorder
from adaptc.ir.operator import AbstractOperator
from adaptc.ir.prims import Primitive
from adaptc.ir.printer import formula
from adaptc.ir.rules import Rule, forms, simplify
from adaptc.method import W_leaf, bias_leaf, x_leaf, y_leaf
from adaptc.plan.evaluate import evaluate
from adaptc.plan.plan import Plan
from adaptc.plan.search import candidates, drawn, plan
from adaptc.runtime.attach import Wholes, attach
from adaptc.runtime.planning import bucket, task_of
from adaptc.runtime.program import Program, assemble, build
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

    def __str__(self) -> str:
        return f"{self.method.name}(seed={self.seed})"

    @property
    def sizes(self) -> tuple[int, int]:
        """n and k."""
        return SIZES[self.seed % len(SIZES)]

    @cached_property
    def equation(self) -> Equation:
        """What tracing gives, simplified."""
        return self.method(seed=self.seed).trace(*self.sizes)

    @cached_property
    def drawn(self) -> tuple[Expr, ...]:
        """The equation as it was written."""
        n, k = self.sizes
        known = {"W": W_leaf(n, k), "bias": bias_leaf(n), "x": x_leaf(k), "y": y_leaf(n)}
        return FORMS[self.method](self.seed, *(known[a] for a in self.method.arguments))

    @cached_property
    def stack(self) -> Stack:
        """The adapter on its layer, training."""
        return stack(((self.equation, 0.0),), *self.sizes, True, True)

    @cached_property
    def wants(self) -> tuple[bool, ...]:
        """Which arguments want a gradient."""
        trained = ("token", "weight", "bias", "param")
        return tuple(leaf.role in trained for leaf in self.stack.arguments)

    @cached_property
    def tensors(self) -> list[torch.Tensor]:
        """Values of the arguments, the parameters moved away from their initial ones."""
        s, generator = self.stack, torch.Generator().manual_seed(self.seed)
        x, W, bias = (draw_leaf(leaf, generator) for leaf in s.arguments[:3])
        start = attach(s.equations[0], W, Wholes())
        given = [start[leaf.name] for leaf in s.leaves[0]]
        moved = [t + 0.1 * t.sin() if t.is_floating_point() else t for t in given]
        seed = [draw_leaf(leaf, generator) for leaf in s.arguments[len(moved) + 3 :]]
        return [x, W, bias, *moved, *seed]

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Of the arguments."""
        return tuple(str(t.dtype).removeprefix("torch.") for t in self.tensors)

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
        """The same by the dense definition."""

        def call(arguments):
            values = dict(zip(self.stack.arguments, arguments, strict=True))
            return Evaluator(values, dtype, rows=ROWS)(self.stack.output)

        return self.results(call, dtype)

    def plans(self, most: int) -> Iterator[Plan]:
        """The plan of the search, and every candidate if there are at most `most`, else so many drawn."""
        task = task_of(self.stack, self.wants, "cpu")
        yield plan(task)
        met = evaluate(task, {})[1]
        few = prod(len(c.options) for c in met.values()) <= 4 * most  # or one site's choice may rid us of others
        every = list(islice(candidates(task), most + 1)) if few else []
        yield from every if 0 < len(every) <= most else islice(drawn(task, Random(self.seed)), most)

    def programs(self, most: int) -> Iterator[Program]:
        """What a layer runs for these few rows, and each of the plans that is another program."""
        n, k = self.sizes
        yield build(self.stack, (self.dtypes, self.wants), "cpu", bucket(ROWS, n, k))
        distinct = {(p.y, p.gradients, tuple(k.node for k in p.kept)): p for p in self.plans(most)}
        for one in distinct.values():
            yield assemble(one, self.stack, self.dtypes)


def far(found, expected) -> float:
    """The largest error of a result against its size, or a thousandth of the largest size."""
    largest = max(float(e.norm()) for e in expected)
    if not all(f.isfinite().all() for f in found):
        return float("inf")
    assert [f.shape for f in found] == [e.shape for e in expected]
    pairs = zip(found, expected, strict=True)
    return max(float((f - e).norm() / max(float(e.norm()), CONDITION * largest)) for f, e in pairs)


@dataclass
class Outcome:
    """What comparing one draw found."""

    good: bool  # is the draw well-conditioned?
    programs: int = 0
    worst: float = 0.0
    wrong: list[str] = field(default_factory=list)
    primitives: Counter[str] = field(default_factory=Counter)


def compare(case: Case, most: int) -> Outcome:
    """Hold every plan of a well-conditioned draw to the bound."""
    expected = case.reference()
    outcome = Outcome(far(case.reference(torch.float32), expected) <= CONDITION)
    if not outcome.good:
        return outcome
    nodes: set[Expr] = set()
    for program in case.programs(most):
        error = far(case.results(lambda a, p=program: p.call(*a)), expected)
        outcome.programs += 1
        outcome.worst = max(outcome.worst, error)
        if not error < BOUND:
            outcome.wrong.append(_described(case, program, error))
        nodes.update(postorder(program.plan.y, *(g for _, g in program.plan.gradients)))
    outcome.primitives.update({type(e).__name__ for e in nodes})
    return outcome


def _described(case: Case, program: Program, error: float) -> str:
    choices = [c.chosen for c in program.plan.choices]
    few = " in one native call" if program.forward_source.strided else ""
    return f"{case} is off by {error:.1e}{few}: {formula(case.stack.output)}\nchoices: {choices}"


# --------------------------------------------------------------------------- what draws reach


def operators(*roots: Expr) -> set[str]:
    """Names of the operators of some trees."""
    return {e.name for e in postorder(*roots) if isinstance(e, AbstractOperator)}


def fired(root: Expr) -> set[str]:
    """Names of the rules that rewrite the tree, or give it another form."""
    always = [r for r in Rule.registry.values() if not r.form]
    found = {r.name for r in always for e in postorder(root) if r.rewrite(e) is not None}
    return found.union(*(forms(e) for e in postorder(simplify(root))))


def built_in(counts: Counter[str], registry: type) -> dict[str, int]:
    """The counts of a registry's own entries, without those that tests registered."""
    every = {name: getattr(entry, "rewrite", entry).__module__ for name, entry in registry.registry.items()}
    return {name: counts[name] for name, module in every.items() if module.startswith("adaptc.")}


REGISTRIES = {"operators": AbstractOperator, "rules": Rule, "primitives": Primitive}
