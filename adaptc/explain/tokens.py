"""Where in the number of tokens the plan changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adaptc.ir.dims import TOKENS
from adaptc.plan.plan import Choice, Plan, total
from adaptc.runtime.planning import Signature, buckets
from adaptc.runtime.program import plan_at
from adaptc.runtime.stack import Stack

LARGEST = 65536  # tokens


def by_tokens(
    composed: Stack, signature: Signature, forms: Callable[[tuple[Choice, ...]], dict[str, str]]
) -> list[dict[str, Any]]:
    """Ranges of m from 1 to 65,536 with one plan each: GEMM FLOPs over x W^T at one of them, and forms."""
    found: list[dict[str, Any]] = []
    last: Plan | None = None
    first = 1
    for most in buckets(composed.n, composed.k):
        most = min(most, LARGEST)
        if most < first:
            continue
        plan = plan_at(composed, signature, "cpu", most)
        if last is not None and _same(plan, last):
            found[-1]["to"] = most
        else:
            found.append({"from": first, "to": most, **_flops(plan, composed), "forms": forms(plan.choices)})
        last, first = plan, most + 1
    return found


def _flops(plan: Plan, composed: Stack) -> dict[str, Any]:
    """GEMM FLOPs over x W^T at the number of tokens for which a plan was made."""
    m = plan.task.size(TOKENS)
    base = 2 * m * plan.task.size(composed.n) * plan.task.size(composed.k)
    both = [total(steps, plan.task.size).gemm / base for steps in (plan.forward, plan.backward)]
    return {"at": m, "forward over base": round(both[0], 4), "backward over base": round(both[1], 4)}


def _same(a: Plan, b: Plan) -> bool:
    return a.y is b.y and a.gradients == b.gradients
