"""Every rewrite: it fires, keeps the value, and is proved in exact arithmetic on its example."""

from random import Random

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from oracle import assert_close, evaluate, exact, rationals
from strategies import ROWS, Draws, draw_values, leaves

from adaptc.ir.algebra import linear
from adaptc.ir.dims import TOKENS, same_shape
from adaptc.ir.expand import expand
from adaptc.ir.expr import postorder, rewrite
from adaptc.ir.matrix import Initial
from adaptc.ir.prims import Leaf
from adaptc.ir.printer import formula
from adaptc.ir.rules import Rule, forms, simplify
from adaptc.plan.evaluate import evaluate as assess
from adaptc.plan.plan import Task

each_rule = pytest.mark.parametrize("name", sorted(Rule.registry))
FORMS = sorted(r.name for r in Rule.registry.values() if r.form)
each_form = pytest.mark.parametrize("name", FORMS)
seeds = st.integers(0, 2**32)


def fires(rule, root):
    """Nodes below a root that a rule rewrites."""
    return [e for e in postorder(root) if rule.rewrite(e) is not None]


def tree(seed, depth=3):
    """A random matrix expression."""
    return Draws(Random(seed), Leaf("W", (6, 4), "weight")).matrix(6, 4, depth)


def nested(rule, seed):
    """What a rule rewrites, over random parts and inside a random tree."""
    draws = Draws(Random(seed))
    part = draws.fit(draws.widened(rule, 2), 6, 4)
    return draws.matrix(3, 6, 1) @ (part + draws.matrix(6, 4, 1))


def attached(root):
    """Values of the attach stage as leaves."""
    return rewrite(root, lambda e: Leaf(f"i{e.digest}", e.dims, "attach") if isinstance(e, Initial) else None)


@each_rule
def test_fires_on_its_example_and_keeps_its_kind(name):
    before = Rule.registry[name].example()
    after = Rule.registry[name].rewrite(before)
    assert after is not None
    assert after is not before
    assert same_shape(after.dims, before.dims)
    assert after.kind == before.kind


@each_rule
def test_says_before_and_after(name):
    before, arrow, after = Rule.registry[name].text.partition(" -> ")
    assert arrow
    assert before != after


@each_rule
def test_keeps_the_value_on_its_example(name):
    before = Rule.registry[name].example()
    values = draw_values(before)
    after = Rule.registry[name].rewrite(before)
    assert_close(evaluate(after, dict(values)), evaluate(before, dict(values)), name)


@each_rule
@pytest.mark.parametrize("seed", range(3))
def test_is_proved_in_exact_arithmetic(name, seed):
    before = Rule.registry[name].example()
    rng = Random(seed)
    values = {leaf: rationals(leaf.dims, rng) for leaf in leaves(before)}
    left = exact(before, values)
    right = exact(Rule.registry[name].rewrite(before), values)
    assert left.shape == right.shape
    assert all(e.is_Rational for e in left.ravel()), "the example leaves exact arithmetic"
    assert np.all(left == right), f"{Rule.registry[name].text}: {left - right}"


def test_exact_arithmetic_can_tell():
    """The proof fails for a rule that is wrong in one entry."""
    before = Rule.registry["compact_wy"].example()
    values = {leaf: rationals(leaf.dims, Random(0)) for leaf in leaves(before)}
    wrong = {leaf: v.copy() for leaf, v in values.items()}
    wrong[leaves(before)[0]][0, 0] += 1
    after = Rule.registry["compact_wy"].rewrite(before)
    assert np.any(exact(before, values) != exact(after, wrong))


@each_rule
def test_does_not_fire_on_a_leaf(name):
    assert Rule.registry[name].rewrite(Leaf("W", (6, 4), "weight")) is None


@each_rule
@pytest.mark.parametrize("seed", range(6))
def test_fires_inside_a_random_tree_and_keeps_its_value(name, seed):
    rule, root = Rule.registry[name], nested(Rule.registry[name], seed)
    assert fires(rule, root)
    values = draw_values(root)
    after = rewrite(root, rule.rewrite)
    assert_close(evaluate(after, dict(values)), evaluate(root, dict(values)), formula(root))


@each_form
@pytest.mark.parametrize("seed", range(6))
def test_a_form_is_offered_and_can_be_chosen(name, seed):
    root = attached(simplify(nested(Rule.registry[name], seed)))
    assert any(name in forms(e) for e in postorder(root))
    x, met = Leaf("x", (TOKENS, 4), "token"), []

    def choose(site):
        met.extend(site.options)
        return name if name in site.options else site.options[0]

    y = expand(linear(x, root), choose)
    assert name in met
    values = draw_values(root, x)
    expected = values[x] @ evaluate(root, dict(values)).T
    assert_close(evaluate(y, dict(values), ROWS), expected, formula(root))


@settings(max_examples=300)
@given(seeds)
def test_simplify_keeps_the_value(seed):
    root = tree(seed)
    values = draw_values(root)
    assert_close(evaluate(simplify(root), dict(values)), evaluate(root, dict(values)))


@settings(max_examples=300)
@given(seeds)
def test_simplify_comes_to_rest(seed):
    once = simplify(tree(seed))
    assert simplify(once) is once
    always = [r for r in Rule.registry.values() if not r.form]
    assert not any(fires(rule, once) for rule in always)


@settings(max_examples=300)
@given(seeds)
def test_simplify_never_costs(seed):
    def seconds(root):
        x = Leaf("x", (TOKENS, 4), "token")
        task = Task(linear(x, root), Leaf("gy", (TOKENS, 6), "gradient"), (x,), "cpu")
        return assess(task, {})[0].apart[0]

    root = attached(tree(seed))
    assert seconds(simplify(root)) <= seconds(root) * (1 + 1e-9)
