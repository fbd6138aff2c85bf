"""Random adapters: every plan tried gives y and all gradients of the dense float64 reference."""

import re
from collections import Counter
from random import Random

import fuzz
import pytest
from click.testing import CliRunner
from fuzzing import BOUND, REGISTRIES, SIZES, Case, Outcome, built_in, compare, far, fired
from strategies import DEPTH, Draws, bias_form, leaves, output_form, weight_form

from adaptc.ir.algebra import linear
from adaptc.ir.dims import TOKENS
from adaptc.ir.expand import expand
from adaptc.ir.expr import Expr, postorder, rewrite
from adaptc.ir.matrix import Initial
from adaptc.ir.operator import AbstractOperator
from adaptc.ir.prims import Leaf
from adaptc.ir.rules import simplify
from adaptc.ir.vjp import vjp

MOST = 4  # candidates of one draw
BLOCK, LEAST = 8, 6
CASES = [(m, b * BLOCK) for m, blocks in ((weight_form, 4), (bias_form, 2), (output_form, 2)) for b in range(blocks)]


@pytest.mark.parametrize(("method", "start"), CASES, ids=lambda v: getattr(v, "name", v))
def test_every_plan_is_the_reference(method, start):
    outcomes = [compare(Case(method, seed), MOST) for seed in range(start, start + BLOCK)]
    assert not [wrong for o in outcomes for wrong in o.wrong]
    good = [o.good for o in outcomes]
    assert sum(good) >= LEAST, f"{good.count(False)} of {BLOCK} draws are ill-conditioned"


@pytest.mark.parametrize(
    ("method", "seed"), [(output_form, 471), (output_form, 695), (bias_form, 670)], ids=lambda v: getattr(v, "name", v)
)
def test_what_the_long_run_once_found(method, seed):
    assert not compare(Case(method, seed), 64).wrong


def test_the_reference_can_disagree():
    """A plan of another equation is told apart."""
    case = Case(weight_form, 0)
    wrong = case.reference()
    wrong[1] = wrong[1] * (1 + 10 * BOUND)
    assert far(case.reference(), wrong) > BOUND


def test_the_long_run_compares_as_many_draws_as_are_asked_for():
    result = CliRunner().invoke(fuzz.main, ["--draws", "2", "--start", "3", "--plans", "2"])
    assert result.exit_code == 0, result.output
    assert re.search(r"well-conditioned +2\b.*wrong +0\b", result.output, re.DOTALL)


@pytest.mark.parametrize(
    "broken", [lambda case, most: Outcome(True, wrong=[f"{case} is off"]), lambda case, most: 1 / 0]
)
def test_the_long_run_says_which_draw_is_wrong(broken, monkeypatch):
    monkeypatch.setattr(fuzz, "compare", broken)
    result = CliRunner().invoke(fuzz.main, ["--draws", "1", "--start", "5"])
    assert result.exit_code == 1
    assert "output_form(seed=5) " in result.output
    assert "python tests/fuzz.py --start 5 --draws 1" in result.output


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
    for name, counts in {"operators": operators, "rules": rules, "primitives": primitives}.items():
        ours = built_in(counts, REGISTRIES[name])
        assert min(ours.values()) > 0, f"of {draws} draws: {ours}"


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
