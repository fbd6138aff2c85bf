"""Half spectra. Of the spectrum of a real row one half says the other; where only the real part of a transform is
wanted, one half of what goes in does. Steps that read or write single columns can do with the half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy

from adaptc.ir.expr import Expr
from adaptc.ir.prims import Map, Transform
from adaptc.plan.sampled import Sampled, Scattered

Steps = Mapping[Expr, Sampled | Scattered]


def half_spectra(nodes: Sequence[Expr], steps: Steps, unmade: set[Expr], results: Sequence[Expr]) -> set[Expr]:
    """The transforms of real rows of which nothing is read but columns, by sparse steps."""
    users = _users(nodes)
    scaled = {t.x.x for t in steps.values() if isinstance(t, Scattered) and t.c.kind != "real"}
    found = [e for e in nodes if _of_rows(e) and e.children[0].kind == "real"]
    return {e for e in found if e not in results and e not in scaled and unmade.issuperset(users.get(e, [e]))}


def only_real(nodes: Sequence[Expr], steps: Steps, results: Sequence[Expr]) -> dict[Expr, Transform]:
    """Real parts of transforms of products of spectra with sparse matrices, which nothing else reads, and these
    transforms."""
    users = _users(nodes)
    found: dict[Expr, Transform] = {}
    for e in nodes:
        if not isinstance(e, Map) or not e.fn.has(sympy.re) or not isinstance(e.args[0], Transform):
            continue
        step = steps.get(e.args[0].x)
        if not isinstance(step, Scattered) or step.x.x.kind == "real" or step.c.kind != "real":
            continue
        alone = all(len(users.get(t, ())) == 1 and t not in results for t in (e.args[0], e.args[0].x))
        if alone and _of_rows(e.args[0]):
            found[e] = e.args[0]
    return found


def _of_rows(e: Expr) -> bool:
    return isinstance(e, Transform) and e.name in ("fft", "ifft") and e.ndim == 2 and e.axis == 1


def _users(nodes: Sequence[Expr]) -> dict[Expr, list[Expr]]:
    found: dict[Expr, list[Expr]] = {}
    for e in nodes:
        for c in e.children:
            found.setdefault(c, []).append(e)
    return found
