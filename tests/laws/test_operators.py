"""What every registered operator must satisfy, on instances from its own `sample`."""

import functools
import pickle
import re
from itertools import count, islice
from random import Random

import pytest
import torch
from oracle import BATCHED, DEFINITIONS, assert_close, autograd, dense, evaluate
from strategies import ROWS, SHAPES, Draws, draw_values, index_leaf, leaves

from adaptc.errors import ShapeError
from adaptc.ir.algebra import linear
from adaptc.ir.dims import TOKENS, show, value
from adaptc.ir.expand import dense as formed
from adaptc.ir.expand import expand
from adaptc.ir.expr import postorder, substitute
from adaptc.ir.matrix import MatMul
from adaptc.ir.operator import AbstractOperator
from adaptc.ir.prims import Leaf, Table
from adaptc.ir.printer import formula, listing
from adaptc.ir.rules import Rule
from adaptc.ir.vjp import vjp
from adaptc.plan.plan import steps, total

MOST, LEAST = 12, 3
OPERATORS = sorted(AbstractOperator.registry)
each_operator = pytest.mark.parametrize("name", OPERATORS)


def drawn(cls):
    """Instances over the grid of shapes, again and again with other choices."""
    for trial, shape in ((t, s) for t in range(8) for s in SHAPES):
        draws = Draws(Random(f"{trial} {shape}"), first=100 * trial)
        e = cls.sample(*shape, draws.make(0), draws.rng)
        if e is not None:
            assert e.dims == shape
            yield e


@functools.cache
def instances(name):
    """The first distinct instances of an operator."""
    cls = AbstractOperator.registry[name]
    return list(islice(dict.fromkeys(drawn(cls)), MOST))


def each_form(e):
    """Choosers that apply, that form the matrix, and that take each form of a rule that fires."""
    rules = [r for r in Rule.registry.values() if r.form]
    fire = [r.name for r in rules if any(r.rewrite(node) is not None for node in postorder(e))]
    for name in ("apply", "dense", *fire):
        yield lambda site, name=name: name if name in site.options else site.options[0]


def rows_of(e, transposed=True):
    """A token matrix that e can multiply."""
    return Leaf("x", (TOKENS, e.dims[1 if transposed else 0]), "token")


def definition(e, values):
    """The dense matrix by the operator's own definition."""
    return evaluate(e, dict(values))


def test_every_built_in_operator_has_an_oracle():
    ours = {n for n, c in AbstractOperator.registry.items() if "adaptc.ir.operators" in c.__module__}
    assert ours == set(DEFINITIONS)


@each_operator
def test_sample_gives_instances(name):
    found = instances(name)
    assert len(found) >= LEAST
    assert all(isinstance(e, AbstractOperator.registry[name]) for e in found)


def test_three_butterfly_stages_are_reached():
    stages = {e.R.dims[0] for e in instances("butterfly")}
    assert 3 in stages, "P and P^T look alike at two stages"


@each_operator
def test_definition_is_the_table(name):
    for e in instances(name):
        values = draw_values(e)
        M = definition(e, values)
        assert tuple(M.shape) == e.dims
        assert M.is_complex() == (e.kind == "complex")
        if name in DEFINITIONS:
            assert_close(M, dense(e, values), formula(e))


@each_operator
def test_dense_form_is_the_definition(name):
    for e in instances(name):
        values = draw_values(e)
        assert_close(evaluate(formed(e), dict(values)), definition(e, values), formula(e))


@each_operator
def test_every_form_multiplies_like_the_definition(name):
    for e in instances(name):
        values = draw_values(e, rows_of(e))
        x, M = values[rows_of(e)], definition(e, values)
        for form in each_form(e):
            y = evaluate(expand(linear(rows_of(e), e), form), dict(values), ROWS)
            assert_close(y, x.to(M.dtype) @ M.T, f"x @ {formula(e)}^T")


@each_operator
def test_every_form_multiplies_from_the_other_side(name):
    for e in instances(name):
        token = rows_of(e, transposed=False)
        values = draw_values(e, token)
        M = definition(e, values)
        for form in each_form(e):
            y = evaluate(expand(MatMul(token, e), form), dict(values), ROWS)
            assert_close(y, values[token].to(M.dtype) @ M, f"x @ {formula(e)}")


@each_operator
def test_every_form_multiplies_complex_rows(name):
    for e in instances(name):
        x = Leaf("x", (TOKENS, e.dims[1]), "token", "complex")
        g = Leaf("g", (TOKENS, e.dims[0]), "token", "complex")
        values = draw_values(e, x, g)
        M = definition(e, values).to(torch.complex128)
        for form in each_form(e):
            y = evaluate(expand(linear(x, e), form), dict(values), ROWS)
            assert_close(y, values[x] @ M.T, f"x @ {formula(e)}^T")
            y = evaluate(expand(MatMul(g, e), form), dict(values), ROWS)
            assert_close(y, values[g] @ M, f"x @ {formula(e)}")


@each_operator
def test_tables_may_be_leaves(name):
    for e in instances(name):
        tables = [t for t in postorder(e) if isinstance(t, Table)]
        names = {t: index_leaf(f"t{j}", len(t.values), 1 + max(t.values)) for j, t in enumerate(tables)}
        loose = substitute(e, names)
        values = draw_values(e, rows_of(e))
        given = {leaf: torch.tensor(t.values) for t, leaf in names.items()}
        y = evaluate(expand(linear(rows_of(e), loose)), {**values, **given}, ROWS)
        M = definition(e, values)
        assert_close(y, values[rows_of(e)].to(M.dtype) @ M.T, formula(e))


@each_operator
def test_linear_in_x_and_adjoint(name):
    for e in instances(name):
        x, g = rows_of(e), rows_of(e, transposed=False)
        values = draw_values(e, x, g)
        y = expand(linear(x, e))

        def at(x_value, y=y, values=values, x=x):
            return evaluate(y, {**values, x: x_value}, ROWS)

        one, two = values[x], values[x].flip(0).sin()
        assert_close(at(2 * one - 3 * two), 2 * at(one) - 3 * at(two), formula(e))
        back = evaluate(expand(MatMul(g, e)), dict(values), ROWS)
        left = (at(one) * values[g]).sum()  # <A x, g>
        assert_close((back * one).sum(), left, formula(e))  # <x, A^T g>


@each_operator
def test_vjp_is_autograd_of_the_definition(name):
    for e, form in ((one, form) for one in instances(name) for form in each_form(one)):
        gy = Leaf("gy", (TOKENS, e.dims[0]), "gradient", e.kind)
        wrt = [leaf for leaf in (rows_of(e), *leaves(e)) if leaf.kind == "real"]
        values = draw_values(*wrt, e, gy)
        inputs = [values[leaf].requires_grad_() for leaf in wrt]
        M = definition(e, values)
        expected = autograd(inputs[0].to(M.dtype) @ M.T, values[gy], inputs)
        found = vjp(expand(linear(rows_of(e), e), form), gy, wrt)
        for leaf, g in zip(wrt, expected, strict=True):
            ours = evaluate(found[leaf], dict(values), ROWS) if leaf in found else torch.zeros_like(g)
            assert_close(ours, g, f"gradient of {leaf.name} in {formula(e)}")


@each_operator
def test_cost_is_positive(name):
    def spent(root):
        return total(steps([root], ()), lambda d: value(d, {TOKENS: 64}))

    for e in instances(name):
        for y in (expand(linear(rows_of(e), e), form) for form in each_form(e)):
            assert 0 <= spent(y).gemm <= spent(y).flops
            assert spent(y).entries > 0 or y is rows_of(e)


@each_operator
def test_interned_and_pickled(name):
    for e in instances(name):
        assert type(e)(*e.fields) is e
        assert type(e)(**dict(zip(type(e)._fields, e.fields, strict=True))) is e
        assert pickle.loads(pickle.dumps(e)) is e
        with pytest.raises(AttributeError, match="frozen"):
            setattr(e, type(e)._fields[0], None)


@each_operator
def test_prints(name):
    for e in instances(name):
        assert name in formula(e)
        assert listing(e).splitlines()[-1].endswith(show(e.dims))
        assert type(e).__name__ in repr(e)


@each_operator
def test_wrong_rows_are_refused(name):
    for e in instances(name):
        wrong = Leaf("x", (TOKENS, e.dims[1] + 1), "token")
        with pytest.raises(ShapeError, match=rf"\b{e.dims[1] + 1} is not {e.dims[1]}\b"):
            linear(wrong, e)


def grown(e):
    """The operator with one axis of one leaf longer, or the error that it gives."""
    for leaf in leaves(e):
        for axis, d in enumerate(leaf.dims):
            longer = tuple(d + 1 if a == axis else s for a, s in enumerate(leaf.dims))
            try:
                yield substitute(e, {leaf: Leaf(leaf.name, longer, leaf.role, leaf.kind)}), d + 1
            except ShapeError as error:
                yield str(error).rpartition(" [")[0], d + 1


@each_operator
def test_wrong_sizes_are_refused_or_give_another_shape(name):
    for e in instances(name):
        for found, size in grown(e):
            if isinstance(found, str):
                assert len(re.findall(r"\d+", found)) >= 2, f"{found!r} does not say both sizes"
            else:
                M = definition(found, draw_values(found))
                assert tuple(M.shape) == found.dims, f"{formula(e)} with {size}"


@pytest.mark.parametrize("name", BATCHED)
def test_leading_axes_are_batch(name):
    for e in instances(name):
        names = count()
        parts = {f: Leaf(f"b{next(names)}", (2, *f.dims), "param") for f in e.fields}
        stacked = type(e)(*parts.values())
        values = draw_values(stacked)
        given = [values[leaf] for leaf in parts.values()]
        given[0] += 4 * torch.eye(*given[0].shape[-2:]) if given[0].ndim > 2 else 2
        alone = [DEFINITIONS[name](*(v[j].numpy() for v in given)) for j in range(2)]
        expected = torch.stack(list(map(torch.as_tensor, alone)))
        assert stacked.dims == tuple(expected.shape)
        assert_close(evaluate(stacked, dict(values)), expected, f"definition of {formula(stacked)}")
        assert_close(evaluate(formed(stacked), dict(values)), expected, formula(stacked))


@pytest.mark.parametrize("name", BATCHED)
def test_gradients_of_a_batch(name):
    for e in instances(name):
        parts = [Leaf(f"b{j}", (2, *f.dims), "param") for j, f in enumerate(e.fields)]
        stacked = type(e)(*parts)
        gy = Leaf("gy", stacked.dims, "gradient")
        values = draw_values(stacked, gy)
        first = values[parts[0]]
        first += 4 * torch.eye(*first.shape[-2:]) if first.ndim > 2 else 2
        inputs = [values[leaf].requires_grad_() for leaf in parts]
        expected = autograd(evaluate(stacked, dict(values)), values[gy], inputs)
        found = vjp(formed(stacked), gy, parts)
        for leaf, g in zip(parts, expected, strict=True):
            assert_close(evaluate(found[leaf], dict(values)), g, f"{leaf.name} in {formula(e)}")
