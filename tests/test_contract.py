"""The contract of `adaptc.laws` on every method of the catalogue, and proof that it can fail."""

import pytest

import adaptc as ac
from adaptc.case import Case
from adaptc.errors import LawError
from adaptc.ir.build import scale
from adaptc.ir.expr import postorder
from adaptc.ir.operator import AbstractOperator
from adaptc.laws import LAWS
from adaptc.methods import catalogue
from adaptc.verify import accepted


@pytest.mark.parametrize("name", catalogue())
def test_every_law_holds(name):
    verdict = ac.verify(catalogue()[name])
    assert verdict.laws == tuple(LAWS)
    sizes = set(verdict.sizes)
    assert {n > k for n, k in sizes if n != k} == {True, False}
    assert max(n * k for n, k in sizes) >= 750


def users(operator):
    """Methods whose equation has an operator, with the smallest size they take."""
    for method in catalogue().values():
        n, k = accepted(method())[0]
        equation = method().trace(n, k)
        nodes = postorder(*(e for e in equation.results if e is not None))
        if any(isinstance(e, operator) and e.ndim == 2 and e.kind == "real" for e in nodes):
            yield method(), max(accepted(method()), key=lambda size: -abs(size[0] * size[1] - 1500))


APPLIED = [op for op in AbstractOperator.registry.values() if op.applies() and next(users(op), None)]


def test_enough_operators_are_mutated():
    assert len(APPLIED) >= 6


@pytest.mark.parametrize("operator", APPLIED, ids=lambda op: op.name)
def test_a_wrong_apply_breaks_a_law_that_names_the_operator(operator, monkeypatch):
    adapter, (n, k) = next(users(operator))
    right = operator.apply
    monkeypatch.setattr(operator, "apply", lambda self, x: scale(1.01, right(self, x)))
    with pytest.raises(LawError) as caught:
        ac.verify(adapter, n, k)
    assert caught.value.law == f"operator {operator.name}"
    assert f"n = {n}, k = {k}" in str(caught.value)


def test_a_transposed_factor_is_found(monkeypatch):
    from adaptc.ir.operators.kron import Kron

    right = Kron.apply
    monkeypatch.setattr(Kron, "apply", lambda self, x: right(Kron(self.A.T, self.B), x))
    with pytest.raises(LawError, match="kron"):
        ac.verify(catalogue()["lokr"](r=1), 36, 36)


@pytest.mark.parametrize("name", catalogue())
def test_a_wrong_derivative_is_found(name, monkeypatch):
    from adaptc.ir import vjp

    right = vjp.RULES["Contract"]
    wrong = {**vjp.RULES, "Contract": lambda node, g: [(c, scale(1.01, d)) for c, d in right(node, g)]}
    adapter = catalogue()[name]()
    n, k = accepted(adapter)[-1]
    LAWS["gradients"](Case(adapter, n, k))
    monkeypatch.setattr(vjp, "RULES", wrong)
    from adaptc.plan.search import plan
    from adaptc.runtime.program import build

    caches = (plan, build)
    for cache in caches:
        cache.cache_clear()
    try:
        with pytest.raises(LawError):
            LAWS["gradients"](Case(adapter, n, k))
    finally:
        for cache in caches:
            cache.cache_clear()
