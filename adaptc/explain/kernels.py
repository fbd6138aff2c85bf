"""What would be a generated kernel on a GPU, and what torch's: both ways to compute each part, with their prices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from adaptc.codegen.choice import GAIN, Prices
from adaptc.codegen.equivalents import rewritten
from adaptc.codegen.fuse import Fusion, Part
from adaptc.codegen.tiled import is_torchs
from adaptc.codegen.types import Types
from adaptc.explain.steps import BACKWARD, FORWARD
from adaptc.ir.dims import TOKENS
from adaptc.ir.expr import Expr
from adaptc.ir.prims import Leaf
from adaptc.ir.printer import brief
from adaptc.plan.device import device
from adaptc.plan.plan import Plan, reach

CUDA = "cuda"


def kernel_rows(chosen: Plan, types: Types, rows: int) -> list[dict[str, Any]]:
    """Every part of a plan on a GPU: what it is, what it takes as one kernel and as steps of torch, which is chosen.

    Products with three long extents are parts of their own; then what no kernel can do; then each product together with
    what alone reads it, beside the two apart. Empty for a CPU, and where a size is a symbol.
    """
    where = device(chosen.task.device)
    sizes = {d for e in (*chosen.forward, *chosen.backward) for d in e.dims if not isinstance(d, int)}
    if where.kind != CUDA or any(d.free_symbols - {TOKENS} for d in sizes):
        return []
    task = replace(chosen.task, at=((TOKENS, rows),))
    kept = [k.node for k in chosen.kept]
    ways: list[tuple[str, list[Expr], list[Expr]]] = [
        (FORWARD, [chosen.y, *kept], []),
        (BACKWARD, [g for _, g in chosen.gradients], kept),
    ]
    found = []
    for way, results, given in ways:
        leaves = [e for e in reach(results, given) if isinstance(e, Leaf)]
        roots = rewritten(results, [*leaves, *given])
        mine = replace(types, given={**types.given, **{e: types[e] for e in given}})
        fusion = Fusion(roots, [*leaves, *given], mine)
        prices = Prices(where, task.size, mine)
        for part in _parts(fusion, roots):
            candidate = prices.candidate(part)
            found.append(_row(way, part, brief(part.root, 70), candidate.kernel, candidate.torch))
        found += [_left(way, e, prices.torch(e)) for e in fusion.order if is_torchs(e, fusion.there)]
        for f in prices.fused(fusion):
            found.append(_row(way, f.part, f"with {brief(f.product, 30)} inside", f.together, f.apart))
    return found


def _parts(fusion: Fusion, roots: Sequence[Expr]) -> list[Part]:
    """The parts, and each product that is left to the vendor as one of its own, in the order they are computed."""
    order = {e: j for j, e in enumerate(reach(roots, list(fusion.there)))}
    vendors = [Part(e, tuple(dict.fromkeys(e.children)), (e,)) for e in fusion.order if fusion.is_products(e)]
    return sorted([*fusion.parts.values(), *vendors], key=lambda part: order.get(part.root, len(order)))


def _left(way: str, e: Expr, torch: float) -> dict[str, Any]:
    """A step that there is no kernel for."""
    value = brief(e, 70)
    return {
        "way": way,
        "value": value,
        "reads": len(e.children),
        "kernel seconds": None,
        "torch seconds": torch,
        "by": "aten",
    }


def _row(way: str, part: Part, value: str, kernel: float, torch: float) -> dict[str, Any]:
    return {
        "way": way,
        "value": value,
        "reads": len(part.inputs),
        "kernel seconds": kernel,
        "torch seconds": torch,
        "by": "triton" if kernel <= GAIN * torch else "aten",
    }
