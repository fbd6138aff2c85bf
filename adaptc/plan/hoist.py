"""Which values of a forward without gradients are held from call to call: they depend on parameters alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adaptc.ir.cost import cost, entries
from adaptc.ir.dims import TOKENS
from adaptc.ir.expr import Expr, postorder
from adaptc.ir.prims import Draw, Leaf
from adaptc.plan.device import device
from adaptc.plan.order import ITEM
from adaptc.plan.plan import CALL_ROLES, TOKEN_ROLES, Task, is_view, steps

MOST = 17 / 16  # times the entries of W: what a layer holds; a value as large as W, and small ones
WORTH = 0.5  # of x W^T: what a value as large as W must save a call to be held


def hoisted(y: Expr, task: Task, weight: int) -> tuple[Expr, ...]:
    """The largest parts of y that no call changes, smallest first while all together have at most MOST * weight
    entries. weight: the entries of W.

    Below a part that does not fit, its own parts may. A part is held if to compute it takes longer than its `rent`.
    """
    order = {e: j for j, e in enumerate(postorder(y))}
    fixed = _fixed(order)
    queue = {c for e in order if not fixed[e] for c in e.children if fixed[c]}
    seen, held, free = set(queue), [], MOST * weight
    while queue:
        e = min(queue, key=lambda c: (entries(c.dims, task.size), order[c]))
        queue.remove(e)
        size = entries(e.dims, task.size)
        if not cost(e, task.size).entries or size > free:  # a view, or too large
            queue |= set(e.children) - seen
            seen |= queue
        elif _seconds(task, steps([e], ())) > rent(task, size, weight):
            held.append(e)
            free -= size
    return tuple(sorted(held, key=order.__getitem__))


def rent(task: Task, size: int, weight: int) -> float:
    """What holding a value must save a call, in seconds: its share of W, of the time of x W^T."""
    base = device(task.device).seconds(2 * task.size(TOKENS) * weight, ITEM * weight)
    return WORTH * base * size / weight if weight else 0.0


def _fixed(order: Iterable[Expr]) -> dict[Expr, bool]:
    """Is a value the same in every call, whatever the number of tokens? order: operands first."""
    fixed: dict[Expr, bool] = {}
    for e in order:
        own = isinstance(e, Draw) or (isinstance(e, Leaf) and e.role in (*TOKEN_ROLES, *CALL_ROLES))
        fixed[e] = not own and all(isinstance(d, int) for d in e.dims) and all(fixed[c] for c in e.children)
    return fixed


def _seconds(task: Task, nodes: Sequence[Expr]) -> float:
    where, total = device(task.device), 0.0
    for e in nodes:
        c = cost(e, task.size)
        total += where.seconds(c.gemm, ITEM * c.entries, c.flops - c.gemm) if c.entries and not is_view(e) else 0.0
    return total
