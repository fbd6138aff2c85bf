"""Nodes: one object per expression in every thread and process, frozen, shape-checked, rebuilt by passes."""

import gc
import pickle
import subprocess
import sys
import threading
import weakref

import pytest
import sympy

from adaptc.errors import EquationError, InternalError, ShapeError
from adaptc.ir import build
from adaptc.ir.check import check
from adaptc.ir.dims import Size, size_symbol
from adaptc.ir.expr import Expr, postorder, rewrite, substitute
from adaptc.ir.matrix import MatMul, Transpose
from adaptc.ir.prims import Add, Contract, Leaf, Scale

n, k, r, q = map(size_symbol, "nkrq")
A, B = build.leaf("A", 4, 3), build.leaf("B", 4, 3)


def written():
    """An equation with sharing."""
    W, U, V = build.leaf("W", 6, 4), build.leaf("U", 6, 2), build.leaf("V", 2, 4)
    D = 2 * (U @ V)
    return W + D - build.leaf("c", 6, 1) @ (D.T @ D)[:1]


def test_equal_fields_are_one_object():
    assert build.leaf("A", 4, 3) is A
    assert Leaf(name="A", size=(4, 3), role="param") is A
    assert Leaf("A", (4, 3), "param", "real") is A
    assert A @ B.T is A @ B.T
    assert (A + B) is (A + B)
    assert build.leaf("A", 3, 4) is not A
    assert Leaf("A", (4, 3), "frozen") is not A


def test_one_object_among_threads():
    found, start = [], threading.Barrier(8)

    def make():
        start.wait()
        found.append([build.leaf("shared", 2, j) for j in range(1, 200)])

    threads = [threading.Thread(target=make) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 8
    assert all(a is b for one in found for a, b in zip(one, found[0], strict=True))


def test_pickles_to_the_same_object():
    e = A @ B.T + build.eye(4)
    assert pickle.loads(pickle.dumps(e)) is e


def test_digests_are_the_same_in_every_process():
    e = Scale(2.0, Add((A, B)))
    text = (
        "from adaptc.ir import build; from adaptc.ir.prims import Add, Scale;"
        "print(Scale(2.0, Add((build.leaf('A', 4, 3), build.leaf('B', 4, 3)))).digest)"
    )
    env = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=env, check=True)
    assert run.stdout.strip() == e.digest


def test_digests_tell_expressions_apart():
    parts = [A, B, A + B, A @ B.T, 2 * A, 3 * A, A.T, build.leaf("A", 4, 2), Leaf("A", (4, 3), "frozen")]
    assert len({e.digest for e in parts}) == len(parts)


def test_unused_expressions_are_freed():
    e = Scale(17.25, build.leaf("gone", 9, 9))
    gone = weakref.ref(e)
    del e
    gc.collect()
    assert gone() is None


def test_frozen():
    with pytest.raises(AttributeError, match="Leaf is frozen"):
        A.name = "other"
    with pytest.raises(AttributeError, match="frozen"):
        A.extra = 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Leaf("A", (4, 3)),
        lambda: Leaf("A", (4, 3), "param", "real", 5),
        lambda: Leaf("A", (4, 3), "param", color="red"),
        lambda: Scale(2.0),
    ],
)
def test_fields_are_checked(wrong):
    with pytest.raises(TypeError, match=r"Leaf|Scale"):
        wrong()


def test_children_come_before_parents_once():
    root = written()
    order = postorder(root)
    assert order[-1] is root
    assert len(set(order)) == len(order)
    place = {e: j for j, e in enumerate(order)}
    assert all(place[c] < place[e] for e in order for c in e.children)
    assert postorder(A, B, A) == [A, B]


def test_deep_expressions_do_not_exhaust_the_stack():
    e: Expr = A
    for j in range(3000):
        e = Scale(float(j + 2), e)
    assert len(postorder(e)) == 3001
    assert rewrite(e, lambda node: None) is e


def test_rewrite_sees_rebuilt_nodes():
    C = build.leaf("C", 4, 3)
    seen = []

    def change(e):
        seen.append(e)
        return C if e is A else None

    assert rewrite(Add((Scale(2.0, A), B)), change) is Add((Scale(2.0, C), B))
    assert Scale(2.0, C) in seen
    assert Scale(2.0, A) not in seen


def test_rewrite_without_change_is_the_same_object():
    root = written()
    assert rewrite(root, lambda e: None) is root


def test_substitute_looks_at_nodes_before_their_children():
    root = Add((Scale(2.0, A), A))
    C = build.leaf("C", 4, 3)
    assert substitute(root, {Scale(2.0, A): B, A: C}) is Add((B, C))
    assert substitute(root, {}) is root


def test_sizes_of_a_symbolic_shape_are_sizes():
    x = build.leaf("x", n, 3)
    assert isinstance(x.shape[0], Size)
    assert x.shape[1] == 3
    assert x.dims == (n, 3)
    assert x.ndim == 2


def test_matrix_product_of_different_symbols_is_refused():
    left, right = build.leaf("left", n, r), build.leaf("right", q, k)
    with pytest.raises(ShapeError, match=r"\(n, r\) with \(q, k\): r is not q"):
        left @ right
    with pytest.raises(ShapeError, match=r"\(n, r\) with \(q, k\): r is not q"):
        MatMul(left, right)
    with pytest.raises(ShapeError, match="index b is r and q"):
        build.contract("ab,bc->ac", left, right)


def test_sums_and_products_of_different_symbols_are_refused():
    left, right = build.leaf("left", n, r), build.leaf("right", n, q)
    for act in (lambda: left + right, lambda: left - right, lambda: left * right, lambda: left / right):
        with pytest.raises(ShapeError, match=r"\(n, r\) and \(n, q\)"):
            act()


def test_vectors_are_not_broadcast():
    with pytest.raises(ShapeError, match="use diag or linear"):
        A + build.leaf("v", 3)
    with pytest.raises(ShapeError, match="use diag or linear"):
        build.leaf("v", 3) * A


def test_matmul_needs_axes_and_says_so():
    with pytest.raises(ShapeError, match=r"use \* for scalars"):
        A @ build.leaf("s")
    with pytest.raises(ShapeError, match="3 is not 4"):
        A @ B


def test_an_expression_has_no_truth():
    with pytest.raises(EquationError, match=r"has no truth value.*test_expr\.py"):
        bool(A)
    with pytest.raises(EquationError, match="no truth"):
        assert A < B


@pytest.mark.parametrize("wrong", ["2", None, [[1.0]], object()])
def test_only_numbers_and_expressions_are_operands(wrong):
    with pytest.raises(EquationError, match="cannot use"):
        A + wrong


def test_kinds_promote():
    z, i = Leaf("z", (4, 3), "param", "complex"), Leaf("i", (3,), "frozen", "integer")
    assert (A + z).kind == "complex"
    assert (A.T @ z).kind == "complex"
    assert z.T.kind == "complex"
    assert Contract("i,i->", (i, i)).kind == "integer"
    assert build.real(z).kind == "real"


def test_transposes_and_numbers_move_out():
    assert A.T.T is A
    assert (2 * A).T is 2 * Transpose(A)
    assert (2 * A) @ (3 * B.T) is 6 * (A @ B.T)
    v = build.leaf("v", 3)
    assert v.T is v


def test_check_finds_two_leaves_of_one_name():
    check([A, B, A + B])
    with pytest.raises(InternalError, match="two leaves are named 'A'"):
        check([A, build.leaf("A", 5)])


def test_check_wants_primitives_where_asked():
    with pytest.raises(InternalError, match="Transpose is left"):
        check([A @ B.T], primitive=True)
    C = build.leaf("C", 3)
    long = Contract("ab,cb,b->ac", (A, B, C))
    with pytest.raises(InternalError, match="a product of 3 is left"):
        check([long], primitive=True)


def test_numbers_of_symbolic_sizes_stay_exact():
    x = build.leaf("x", n, 3)
    e = build.scale(Size(n) / 3, build.scale(sympy.Integer(6), x))
    assert sympy.expand(e.factor - 2 * n) == 0
