"""What every pass must know of every primitive: values, generated code, derivatives, cost, text."""

import functools

import pytest
import sympy
import torch
from oracle import assert_close, autograd, evaluate
from strategies import ARITY, POSITIVE, ROWS, draw_values, index_leaf, leaves

from adaptc.codegen import aten
from adaptc.codegen.types import Types
from adaptc.errors import InternalError, ShapeError
from adaptc.ir import build, cost, vjp
from adaptc.ir.check import check
from adaptc.ir.dims import TOKENS, same_shape, value
from adaptc.ir.expr import Expr, postorder
from adaptc.ir.functions import ARGS, ELEMENTWISE
from adaptc.ir.prims import (
    INDEX,
    Add,
    At,
    Broadcast,
    Cholesky,
    Constant,
    Contract,
    Detach,
    Draw,
    Leaf,
    Map,
    Primitive,
    Put,
    Reduce,
    Reshape,
    Scale,
    Solve,
    Table,
    Take,
    TopK,
    Transform,
)
from adaptc.ir.printer import formula, listing
from adaptc.runtime import reference
from adaptc.runtime.program import load

NAMES = sorted(Primitive.registry)
each_primitive = pytest.mark.parametrize("name", NAMES)
X = Leaf("x", (TOKENS, 4), "token")


@functools.cache
def primitives() -> dict[str, tuple[Expr, ...]]:
    """A few expressions for every primitive, by class name."""
    a, b, v = build.leaf("a", 4, 3), build.leaf("b", 4, 3), build.leaf("v", 4)
    s, x = build.leaf("s"), build.leaf("x", TOKENS, 4, role="token")
    z = Leaf("z", (4, 3), "param", "complex")
    i, at = INDEX, index_leaf("at", 5, 4)
    stack, square = build.leaf("stack", 2, 3, 3), build.leaf("square", 4, 4)
    seed = index_leaf("seed", 1, 1000)[0]
    definite = build.eye(4) + build.contract("ik,jk->ij", a, a)
    eyes = Broadcast(build.eye(3), (2, 3, 3), (1, 2))
    return {
        "Leaf": (a, z, x),
        "Constant": (
            Constant(i[0] - 2 * i[1], (4, 3)),
            Constant((0.5, -1.0, 2.0), (3,)),
            build.eye(4),
            Constant(sympy.Heaviside(i[0] - i[1], sympy.Rational(1, 2)), (3, 3)),
            build.ones((TOKENS, 2)),
            Contract("ij,kj->ik", (z, Constant(i[0] - 2 * i[1], (4, 3)))),
            Add((z, Constant(i[0] - 2 * i[1], (4, 3)))),
        ),
        "Table": (Take(v, (At(Table((3, 0, 3)), 0),), (3,)),),
        "Contract": tuple(
            Contract(spec, operands)
            for spec, operands in (
                ("ij->ji", (a,)),
                ("ij,kj->ik", (a, b)),
                ("ij,ij->i", (a, b)),
                ("ij,kj->ki", (a, z)),
                ("i,j->ji", (v, v)),
                (",ij->ij", (s, a)),
                ("gij,gkj->kgi", (stack, stack)),
                ("gij,kj->gik", (stack, a)),
                ("mi,ij->mj", (x, a)),
                ("mi,mj->ij", (x, x)),
                ("ij,ij->", (a, b)),
            )
        ),
        "Add": (
            Add((a, b)),
            Add((a, z)),
            Add((Scale(2.0, a), build.contract("ij,jk->ik", square, b), Scale(-0.5, b))),
            Add((build.contract("mi,ij->mj", x, square), Broadcast(v, (TOKENS, 4), (1,)))),
            Add((Scale(3.0, x), Broadcast(v, (TOKENS, 4), (1,)), x)),
        ),
        "Scale": (Scale(-1.5, a), Scale(0.5, Contract("ij,kj->ik", (a, b))), Scale(2.0, z)),
        "Map": (
            *(
                Map(fn, (2 + a, b)[: ARITY[name]] if name in POSITIVE else (a, b)[: ARITY[name]])
                for name, fn in ELEMENTWISE.items()
            ),
            Map(ARGS[0] ** 3, (a,)),
            Map(1 / ARGS[0], (2 + a,)),
            Map(ARGS[0] * ARGS[1], (a, s)),
            Map(sympy.sqrt(2) * ARGS[0] / 3, (x,)),
            build.real(z),
            build.conj(z),
            Take(v, (At(Map(sympy.Mod(ARGS[0], 3), (at,), "integer"), 0),), (5,)),
            Take(v, (At(Map(sympy.floor(ARGS[0] / 2), (at,), "integer"), 0),), (5,)),
        ),
        "Reduce": (
            Reduce("sum", a, (1,)),
            Reduce("sum", stack, (0, 2)),
            Reduce("max", a, (0,)),
            Reduce("max", a, (0, 1)),
            Reduce("sum", x, (1,)),
            Reduce("sum", z, (0,)),
        ),
        "Broadcast": (
            Broadcast(v, (4, 3), (0,)),
            Broadcast(a, (2, 4, 3), (1, 2)),
            Broadcast(s, (TOKENS, 2), ()),
        ),
        "Reshape": (
            Reshape(a, (2, 6)),
            Reshape(Contract("ij->ji", (a,)), (12,)),
            Reshape(x, (TOKENS, 2, 2)),
            Reshape(build.leaf("one", 1), ()),
        ),
        "Take": (
            Take(a, (i[0] + 1, 2 * i[1]), (3, 2)),
            Take(a, (sympy.Integer(2), i[0]), (3,)),
            Take(a, (i[1], i[0]), (3, 4)),
            Take(v, (sympy.Mod(i[0] - i[1], 4),), (4, 4)),
            Take(a, (At(at, 0), i[1]), (5, 3)),
            Take(x, (i[0], At(at, 1)), (TOKENS, 5)),
            Take(x, (i[0], i[1] + 2), (TOKENS, 2)),
        ),
        "Put": (
            Put(a, (i[0] + 1, 2 * i[1]), (6, 5)),
            Put(v, (sympy.Mod(i[0], 2),), (3,)),
            Put(v, (i[0], 3 - i[0]), (4, 4)),
            Put(build.leaf("w", 5, 3), (At(at, 0), i[1]), (4, 3)),
            Put(Take(x, (i[0], At(at, 1)), (TOKENS, 5)), (i[0], At(at, 1)), (TOKENS, 4)),
            Put(x, (i[0], i[1] + 1), (TOKENS, 6)),
        ),
        "Transform": (
            Transform("fft", a, 0),
            Transform("ifft", z, 1),
            Transform("fft", x, 1),
            Transform("hadamard", a, 0),
            Transform("hadamard", x, 1),
        ),
        "Solve": (
            Solve(4 * build.eye(4) + square, a),
            Solve(build.scale(4, eyes) + stack, stack),
        ),
        "Cholesky": (Cholesky(definite),),
        "Draw": (
            Draw(seed, 0, (4, 3)),
            Draw(seed, 7, (5,), 0.25),
            Draw(seed, 1, (), 0.5),
            build.times(x, Draw(seed, 2, (TOKENS, 4), 0.5)),
            Draw(seed, 3, (2, 3, 3)),
        ),
        "TopK": (TopK(a, 5, None), TopK(a, 2, 0), TopK(x, 1, 1), build.times(a, TopK(b, 12, None))),
        "Detach": (a + Detach(b), Contract("ij,ij->i", (Detach(a), a))),
    }


def bound(*roots):
    """A value for every leaf, and for x."""
    return draw_values(X, *roots)


def compiled(roots, values):
    """The roots by generated code."""
    if not roots:
        return ()
    arguments = list(dict.fromkeys([X, *leaves(*roots)]))
    dtypes = {leaf: str(values[leaf].dtype).removeprefix("torch.") for leaf in arguments}
    types = Types("float64", "float64", dtypes)
    named = [(f"v{j}", leaf) for j, leaf in enumerate(arguments)]
    source = aten.emit("sample", named, [(e, types[e]) for e in roots], types, "")
    return load(source)(*(values[leaf].detach() for leaf in arguments))


def strided(t):
    """The same entries, further apart in memory and in another order."""
    apart = torch.stack([t, torch.full_like(t, -7)], -1)
    swapped = apart.movedim(0, -1).contiguous().movedim(-1, 0) if t.ndim else apart
    view = swapped[..., 0]
    assert torch.equal(view, t)
    return view


def backward(e):
    """The cotangent of a result, the leaves to differentiate for, and the derivatives."""
    gy = Leaf("gy", e.dims, "gradient", e.kind)
    wrt = [leaf for leaf in leaves(e) if leaf.kind != "integer"]
    return gy, wrt, vjp.vjp(e, gy, wrt)


def test_samples_cover_the_registry():
    assert set(primitives()) == set(Primitive.registry)
    for name, samples in primitives().items():
        for e in samples:
            assert name in {type(p).__name__ for p in postorder(e)}


def test_every_pass_has_a_rule_for_every_primitive():
    assert set(vjp.RULES) == set(Primitive.registry)
    assert set(cost.RULES) == set(Primitive.registry)
    assert set(aten.EMIT) == set(Primitive.registry)
    assert set(reference.RULES) >= set(Primitive.registry)


@each_primitive
def test_shapes_and_kinds_hold(name):
    for e in primitives()[name]:
        check([e], primitive=True)
        v = evaluate(e, bound(e), ROWS)
        assert tuple(v.shape) == tuple(value(d, {TOKENS: ROWS}) for d in e.dims)
        assert v.is_complex() == (e.kind == "complex")
        assert e.rebuild(lambda c: c) is e


@each_primitive
def test_generated_code_is_the_reference(name):
    for e in primitives()[name]:
        values = bound(e)
        (ours,) = compiled([e], values)
        assert_close(ours, evaluate(e, values, ROWS), formula(e))


@each_primitive
def test_generated_code_takes_any_strides(name):
    for e in primitives()[name]:
        values = bound(e)
        apart = {leaf: strided(v) for leaf, v in values.items()}
        (ours,) = compiled([e], apart)
        assert_close(ours, evaluate(e, values, ROWS), formula(e))


@each_primitive
def test_generated_code_leaves_its_inputs_alone(name):
    for e in primitives()[name]:
        values = bound(e)
        before = {leaf: v.clone() for leaf, v in values.items()}
        compiled([e, *backward(e)[2].values()], {**values, **bound(backward(e)[0])})
        assert all(torch.equal(v, before[leaf]) for leaf, v in values.items())


@each_primitive
def test_vjp_is_autograd(name):
    for e in primitives()[name]:
        gy, wrt, found = backward(e)
        values = bound(e, gy)
        inputs = [values[leaf].requires_grad_() for leaf in wrt]
        expected = autograd(evaluate(e, dict(values), ROWS), values[gy], inputs)
        for leaf, g in zip(wrt, expected, strict=True):
            if leaf not in found:
                assert not g.any(), f"no gradient of {leaf.name} in {formula(e)}"
                continue
            assert same_shape(found[leaf].dims, leaf.dims)
            assert_close(evaluate(found[leaf], dict(values), ROWS), g, formula(e))


@each_primitive
def test_generated_backward_is_the_reference(name):
    for e in primitives()[name]:
        gy, _, found = backward(e)
        gradients = list(found.values())
        check(gradients, primitive=True)
        values = bound(e, gy)
        for g, ours in zip(gradients, compiled(gradients, values), strict=True):
            assert_close(ours, evaluate(g, dict(values), ROWS), formula(g))


@each_primitive
def test_cost_is_a_number_and_a_formula(name):
    for e in primitives()[name]:
        for node in postorder(e):
            spent = cost.cost(node, lambda d: value(d, {TOKENS: ROWS}))
            assert 0 <= spent.gemm <= spent.flops
            assert spent.entries >= 0
            said = cost.cost(node, lambda d: d)
            assert sympy.sympify(said.entries).subs(TOKENS, ROWS) == spent.entries
            assert sympy.sympify(said.gemm).subs(TOKENS, ROWS) == spent.gemm


@each_primitive
def test_prints(name):
    for e in primitives()[name]:
        assert formula(e)
        assert len(listing(e).splitlines()) == len(postorder(e))


def test_a_class_outside_the_closed_set_is_refused():
    class Foreign(Expr):
        def infer(self):
            return (2,), "real"

    with pytest.raises(InternalError, match="Foreign"):
        cost.cost(Foreign(), int)
    with pytest.raises(InternalError, match="Foreign"):
        check([Foreign()], primitive=True)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a, b: Contract("ij,jk->ik", (a, b)),
        lambda a, b: Contract("ijk->i", (a,)),
        lambda a, b: Add((a, b)),
        lambda a, b: Map(ARGS[0] * ARGS[1], (a, b)),
        lambda a, b: Broadcast(a, (2, 5, 3), (1, 2)),
        lambda a, b: Reshape(a, (5, 3)),
        lambda a, b: Take(a, (INDEX[0],), (4,)),
        lambda a, b: Take(a, (At(Table((0, 1)), 0), INDEX[1]), (4, 3)),
        lambda a, b: Solve(a, b),
        lambda a, b: Solve(build.eye(4), b),
        lambda a, b: Cholesky(a),
        lambda a, b: TopK(a, 13, None),
    ],
)
def test_wrong_sizes_name_both(wrong):
    a, b = build.leaf("a", 4, 3), build.leaf("b", 5, 2)
    with pytest.raises(ShapeError, match=r"\d.*\d"):
        wrong(a, b)


def test_parts_that_fill_a_whole_are_one_copy_unless_they_come_in_place():
    """What is put into zeros part by part is concatenated; a part that was kept is there only as it was put."""
    a, b = build.leaf("a", 2, 3), build.leaf("b", 4, 3)
    parts = [build.put(a, (INDEX[0] + 4, INDEX[1]), (6, 3)), build.put(b, INDEX[:2], (6, 3))]
    whole, types = build.add(*parts), Types("float64", "float64", dict.fromkeys([a, b, *parts], "float64"))
    values = draw_values(a, b)
    expected = torch.cat([values[b], values[a]])
    for given in ((a, b), (parts[0], b), (a, parts[1])):
        source = aten.emit("whole", [(f"v{j}", e) for j, e in enumerate(given)], [(whole, "float64")], types, "")
        assert ("torch.cat" in source.text) == (given == (a, b))
        assert torch.equal(load(source)(*(evaluate(e, dict(values)) for e in given))[0], expected)
