"""The most that a layer may keep for backward, asked for before anything changes."""

from __future__ import annotations

import torch

from adaptc.plan.plan import max_saved
from adaptc.plan.search import plan
from adaptc.runtime.attach import all_leaves
from adaptc.runtime.planning import planned_as, task_of
from adaptc.runtime.stack import Part, stack


def require_saved(
    parts: tuple[Part, ...], n: int, k: int, has_bias: bool, limit: str | int | None, dtype: torch.dtype
) -> None:
    """Raise PlanError if a training step with x in `dtype` and every adapter's gradients cannot keep to the limit."""
    amount = max_saved(limit)
    if amount is None:
        return
    composed = stack(parts, n, k, has_bias, True, amount)
    wanted = set()
    for (equation, _), leaves in zip(parts, composed.leaves, strict=True):
        trained = {s.leaf for s in equation.leaves if s.trainable}
        wanted |= {mine for mine, leaf in zip(leaves, all_leaves(equation), strict=True) if leaf in trained}
    wants = [a.role == "token" or a in wanted for a in composed.arguments]
    plan(task_of(composed, wants, planned_as("cpu"), dtype=str(dtype).removeprefix("torch.")))
