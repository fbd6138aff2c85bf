"""From a call to a plan: what a layer must compute, and for how many tokens it is planned.

The number of tokens falls into one of a few buckets, each with a plan of its own. What is kept for backward is that of
the bucket of 1,024 tokens in all of them, so that it does not depend on the number of tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from adaptc.ir.dims import TOKENS, Dim
from adaptc.plan.plan import NOMINAL, Limit, Plan, Task
from adaptc.plan.search import departures, plan
from adaptc.runtime.machine import described
from adaptc.runtime.stack import Stack

Signature = tuple[tuple[str, ...], tuple[bool, ...]]
"""Dtypes of x, W, bias and the leaves; which of them want a gradient (none: no backward)."""

OBSERVED = "observed "
FEW = 0  # the bucket of tokens so few that the price of a call counts for more than its products
PRODUCTS = 1 << 17  # in x W^T: below it that is so
MOST = 64  # tokens that are few
BUCKETS = (*((m + m // 2, m) for m in (1 << j for j in range(14))), (sys.maxsize, 16384))
"""The most tokens of a bucket, and the number that it is planned for: no call has more than half as many again, or a
quarter less, but those with more than that of the last."""

ITEMS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def task_of(
    stack: Stack,
    wants: Sequence[bool],
    device: str,
    at: tuple[tuple[object, int], ...] = (),
    dtype: str = "float32",
    rows: int = NOMINAL,
) -> Task:
    """What a layer must compute, given which of its arguments want gradients. at: values for symbolic sizes. dtype: of
    x, and rows its number, where what may be kept has a limit."""
    wrt = tuple(leaf for leaf, want in zip(stack.arguments, wants, strict=True) if want)
    limit = None
    if stack.max_saved is not None and wrt:
        limit = Limit(stack.max_saved, ITEMS[dtype], 8 if dtype == "float64" else 4, rows, stack.x_is_kept)
    return Task(stack.output, stack.gy, wrt, device, at, limit=limit)


def few_rows(n: Dim, k: Dim) -> int:
    """The most tokens that are few."""
    if not isinstance(n, int) or not isinstance(k, int) or n < 2 or k < 2:
        return 0
    return min(PRODUCTS // (n * k), MOST)


def bucket(m: int, n: Dim, k: Dim) -> int:
    """The number of tokens for which m tokens are planned."""
    if few_rows(n, k) > 0 and m <= few_rows(n, k):
        return FEW
    return next(rows for most, rows in BUCKETS if m <= most)


def buckets(n: Dim, k: Dim) -> list[int]:
    """The most tokens of each bucket, ascending."""
    few = few_rows(n, k)
    return [*([few] if few else []), *(most for most, _ in BUCKETS if most > few)]


def bounds(n: int, k: int) -> tuple[list[int], list[int]]:
    """The most entries of x of each bucket, ascending, and the buckets."""
    most = buckets(n, k)
    return [min(m * k, sys.maxsize) for m in most], [bucket(m, n, k) for m in most]


def planned(stack: Stack, signature: Signature, device: str, rows: int = NOMINAL) -> Plan:
    """The plan of a bucket; that of 1,024 tokens where one for another number would read or keep something else."""
    dtypes, wants = signature
    kind = planned_as(device)
    task = task_of(stack, wants, kind, dtype=dtypes[0])
    if rows == NOMINAL:
        return plan(task)
    few = rows == FEW
    at = ((TOKENS, few_rows(stack.n, stack.k) if few else rows),)
    other = replace(task, at=at, device="cpu-few" if few else kind)
    if not task.wrt:
        return plan(other)
    many = plan(task)
    found = plan(replace(other, kept=many.kept, limit=None), departures(many))
    return found if found.read == many.read else many


def planned_as(device: str) -> str:
    """What the planner calls a kind of device."""
    return described("cuda" if device.removeprefix(OBSERVED) == "cuda" else "cpu")
