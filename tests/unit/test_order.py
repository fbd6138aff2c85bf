"""Contraction orders: the optimum of every small network, known results for free, the same value always."""

import math
from itertools import combinations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from oracle import assert_close, evaluate
from strategies import draw_values

from adaptc.ir import build
from adaptc.ir.check import check
from adaptc.ir.cost import cost
from adaptc.ir.dims import TOKENS, value
from adaptc.ir.expand import expand
from adaptc.ir.expr import postorder
from adaptc.ir.prims import Contract, Leaf
from adaptc.ir.vjp import vjp
from adaptc.plan.device import Device
from adaptc.plan.order import Orders
from adaptc.plan.plan import steps

COUNT = Device("flops alone", flops=1.0, bandwidth=math.inf, overhead=0.0)


def orders(m=1000):
    """Orders by floating-point operations alone, for m tokens."""
    return Orders(COUNT, lambda d: value(d, {TOKENS: m}))


def products(root, m=1000):
    """Every product of two with its flops."""
    found = [e for e in steps([root], ()) if isinstance(e, Contract) and len(e.operands) == 2]
    return {e: cost(e, lambda d: value(d, {TOKENS: m})).flops for e in found}


def flops(root, m=1000):
    """Of all products."""
    return sum(products(root, m).values())


def brute(terms, out, sizes):
    """The fewest flops of any order, by trying all of them."""
    if len(terms) == 1:
        return 0
    best = math.inf
    for a, b in combinations(range(len(terms)), 2):
        rest = [t for i, t in enumerate(terms) if i not in (a, b)]
        outside = set(out).union(*rest)
        joined = frozenset(c for c in terms[a] | terms[b] if c in outside)
        summed = (terms[a] & terms[b]) - outside
        work = math.prod(sizes[c] for c in terms[a] | terms[b]) * (2 if summed else 1)
        best = min(best, work + brute([*rest, joined], out, sizes))
    return best


def network(spec, sizes):
    """The contraction of one leaf per term; m is the tokens."""
    terms, _, out = spec.partition("->")
    dims = {**sizes, "m": TOKENS}
    made = [build.leaf(f"L{j}", *(dims[c] for c in t)) for j, t in enumerate(terms.split(","))]
    return build.contract(spec, *made)


KNOWN = {
    "LoRA": ("mk,rk,nr->mn", {"n": 512, "k": 512, "r": 8}),
    "LoRA, wide and low": ("mk,rk,nr->mn", {"n": 8, "k": 8, "r": 900}),
    "LoRA, down to few": ("mk,rk,nr->mn", {"n": 4, "k": 512, "r": 64}),
    "chain of four": ("mk,ak,ba,nb->mn", {"n": 64, "k": 256, "a": 4, "b": 128}),
    "Kronecker": ("mqt,pq,st->mps", {"p": 8, "q": 64, "s": 16, "t": 4}),
    "Khatri-Rao": ("mk,rk,sk,nr,ns->mn", {"n": 256, "k": 256, "r": 3, "s": 4}),
    "Khatri-Rao of high rank": ("mk,rk,sk,nr,ns->mn", {"n": 16, "k": 16, "r": 64, "s": 64}),
    "tensor train": (
        "mabc,xpau,xuqbv,xvrc->mpqr",
        dict(zip("abcpqruvx", (4, 8, 4, 3, 5, 3, 2, 2, 1), strict=True)),
    ),
    "diagonals": ("mk,k,rk,r,nr,n->mn", {"n": 96, "k": 64, "r": 4}),
}


@pytest.mark.parametrize("m", [1, 37, 5000])
@pytest.mark.parametrize("name", KNOWN)
def test_known_networks(name, m):
    spec, sizes = KNOWN[name]
    terms, _, out = spec.partition("->")
    tree = orders(m).order(network(spec, sizes))
    check([tree], primitive=True)
    best = brute([frozenset(t) for t in terms.split(",")], out, {**sizes, "m": m})
    assert flops(tree, m) == best


def test_lora_multiplies_activations_first():
    x, A, B = (build.leaf("x", TOKENS, 512, role="token"), build.leaf("A", 8, 512), build.leaf("B", 512, 8))
    tree = orders().order(build.contract("mk,rk,nr->mn", x, A, B))
    (down,) = [e for e in tree.operands if e is not B]
    assert set(down.operands) == {x, A}
    assert set(tree.operands) == {down, B}


def test_a_high_rank_is_multiplied_out():
    x, A, B = (build.leaf("x", TOKENS, 8, role="token"), build.leaf("A", 900, 8), build.leaf("B", 8, 900))
    tree = orders().order(build.contract("mk,rk,nr->mn", x, A, B))
    assert x in tree.operands


def test_khatri_rao_never_forms_the_matrix():
    spec, sizes = KNOWN["Khatri-Rao"]
    tree = orders().order(network(spec, sizes))
    assert not any(set(e.dims) == {256} for e in products(tree) if e is not tree)
    spec, sizes = KNOWN["Khatri-Rao of high rank"]
    tree = orders().order(network(spec, sizes))
    assert any(e.dims == (16, 16) for e in products(tree))


@st.composite
def networks(draw):
    """A connected or unconnected product of two to five tensors."""
    sizes = {c: draw(st.integers(1, 9)) for c in "abcdef"}
    count = draw(st.integers(2, 5))
    terms = [
        draw(st.text("abcdef", min_size=1, max_size=3).map(lambda t: "".join(dict.fromkeys(t)))) for _ in range(count)
    ]
    often = [c for c in "abcdef" if sum(c in t for t in terms) >= 1]
    single = {c for c in often if sum(c in t for t in terms) == 1}
    out = [c for c in often if c in single or draw(st.booleans())]  # no index of one operand alone is summed
    return terms, "".join(out), sizes


@settings(max_examples=150)
@given(networks())
def test_the_order_is_optimal_and_keeps_the_value(drawn):
    terms, out, sizes = drawn
    node = network(f"{','.join(terms)}->{out}", sizes)
    tree = orders().order(node)
    check([tree], primitive=True)
    assert tree.dims == node.dims
    values = draw_values(node)
    assert_close(evaluate(tree, dict(values)), evaluate(node, dict(values)), str(drawn))
    if isinstance(node, Contract) and len(node.operands) == len(terms):
        assert flops(tree) == brute([frozenset(t) for t in terms], out, sizes)


def test_spelling_does_not_matter():
    x, A, B = build.leaf("x", TOKENS, 6), build.leaf("A", 2, 6), build.leaf("B", 5, 2)
    shared = orders()
    one = shared.order(build.contract("mk,rk,nr->mn", x, A, B))
    two = shared.order(build.contract("nr,rk,mk->mn", B, A, x))
    three = shared.order(build.contract("rk,mk,nr->nm", A, x, B))
    assert two is one
    assert set(products(three)) <= set(products(one))


def test_what_is_known_is_free():
    x, gy = build.leaf("x", TOKENS, 64), build.leaf("gy", TOKENS, 8)
    A = build.leaf("A", 60, 64)
    forward, backward = build.contract("mk,rk->mr", x, A), build.contract("mn,mk,rk->nr", gy, x, A)
    alone = orders().order(backward)
    assert forward not in postorder(alone)
    assert any(e.dims == (8, 64) for e in products(alone))  # (gy^T x) A^T
    shared = orders()
    h = shared.order(forward)
    again = shared.order(backward)
    assert set(again.operands) == {gy, h}  # gy^T (x A^T)
    assert flops(again) - flops(h) < flops(alone)


def test_backward_uses_what_forward_computed():
    x, A, B = build.leaf("x", TOKENS, 64, role="token"), build.leaf("A", 4, 64), build.leaf("B", 32, 4)
    gy = Leaf("gy", (TOKENS, 32), "gradient")
    y = expand(build.contract("mk,rk,nr->mn", x, A, B))
    found = vjp(y, gy, [x, A, B])
    shared = orders()
    forward = shared.order(y)
    gx, gA, gB = (shared.order(found[leaf]) for leaf in (x, A, B))
    (h,) = [e for e in products(forward) if e is not forward]
    assert h in postorder(gB)
    (back,) = [e for e in products(gx) if e is not gx]
    assert back in postorder(gA)


def test_long_products_fall_back_to_pairs():
    sizes = (3, 5, 2, 7, 4, 6, 2, 3, 5, 4, 3, 2, 6)
    leaves = [build.leaf(f"M{j}", a, b) for j, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False))]
    letters = "abcdefghijklm"
    terms = ",".join(letters[j : j + 2] for j in range(len(leaves)))
    node = build.contract(f"{terms}->{letters[0]}{letters[-1]}", *leaves)
    tree = orders().order(node)
    check([tree], primitive=True)
    values = draw_values(node)
    assert_close(evaluate(tree, dict(values)), evaluate(node, dict(values)))


def test_every_pick_keeps_the_value():
    spec, sizes = KNOWN["chain of four"]
    node = network(spec, sizes)
    values, trees = draw_values(node), set()
    for at in range(3):
        picky = orders()
        picky.pick = lambda e, count, at=at: at % count
        trees.add(picky.order(node))
    assert len(trees) == 3
    for tree in trees:
        assert_close(evaluate(tree, dict(values), 5), evaluate(node, dict(values), 5))


def test_a_product_of_low_rank_factors_is_a_khatri_rao_product_for_few_tokens():
    """x ((A B) * (C D))^T: at few tokens the factors meet each other row by row and column by column; no n x k."""
    sizes = {"m": TOKENS, "n": 300, "k": 200, "r": 16, "s": 16}
    e = network("nr,rk,ns,sk,mk->mn", sizes)
    assert max(math.prod(value(d, {TOKENS: 1}) for d in s.dims) for s in steps([orders(1).order(e)], ())) < 300 * 200
    assert any(set(s.dims) == {300, 200} for s in steps([orders(1000).order(e)], ()))
