"""The search: three nested choices, never enumerated together.

Form of each part and last product of each long forward contraction: descent, one site at a time, each step scored
by forward and backward together. Order below that: dynamic programming (`order`). What is kept: one rule (`keep`).
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from adaptc.ir.cost import Cost, cost, entries
from adaptc.ir.expand import Site, expand, settled
from adaptc.ir.expr import Expr, postorder
from adaptc.ir.prims import Contract, Draw, Leaf
from adaptc.ir.vjp import vjp
from adaptc.plan.device import Device, device
from adaptc.plan.order import ITEM, Orders
from adaptc.plan.plan import Choice, Kept, Plan, Task, depends_on_tokens, is_view, reach, steps

ORDER = "order of "
CHANGES = 64  # of one site, weighed in one round
WORTH = 0.25  # of a base product per entry: what costs as much to recompute is kept
CHEAP = 16  # flops an entry: such a value is never kept
SMALL = 0.01  # of y: larger values of parameters alone are always computed again


@dataclass
class _Trial:
    """One assignment of options to sites, and the sites it met."""

    chosen: dict[str, str]
    met: dict[str, Choice] = field(default_factory=dict)

    def form(self, site: Site) -> str:
        """The option of a site: assigned, or its first."""
        option = self.chosen.get(site.node.digest, site.options[0])
        option = option if option in site.options else site.options[0]
        seen = self.met.get(site.node.digest)
        options = tuple(dict.fromkeys((*(seen.options if seen else ()), *site.options)))
        self.met[site.node.digest] = Choice(site.node, option, options)
        return option

    def last_product(self, node: Contract, count: int) -> int:
        """Which of a contraction's best last products."""
        options = tuple(f"order {j}" for j in range(count))
        key = ORDER + node.digest
        option = self.chosen.get(key, options[0])
        option = option if option in options else options[0]
        self.met[key] = Choice(node, option, options)
        return options.index(option)


def evaluate(task: Task, chosen: dict[str, str]) -> tuple[Plan, dict[str, Choice]]:
    """The plan of one assignment: expand, differentiate, order, keep."""
    trial, where = _Trial(chosen), device(task.device)
    y = expand(task.y, trial.form)
    gradients = vjp(y, task.gy, task.wrt) if task.wrt else {}
    orders = Orders(where, functools.cache(task.size), trial.last_product)
    flat_y, *flat = settled([y, *gradients.values()])
    ordered = orders.order(flat_y)
    orders.pick = lambda node, count: 0
    for k in task.kept or ():
        if isinstance(k.node, Contract):
            orders.remember((k.node.spec, k.node.operands), k.node)
    back = dict(zip(gradients, orders.order_all(flat), strict=True))
    kept = _keep(task, ordered, list(back.values())) if task.kept is None else task.kept
    seconds = _seconds(task, where, steps([ordered], ()))
    seconds += _seconds(task, where, steps(list(back.values()), [k.node for k in kept]))
    moved = sum(ITEM * entries(k.node.dims, task.size) for k in kept)
    seconds += 2 * moved / where.bandwidth
    choices = tuple(trial.met.values())
    return Plan(
        task, ordered, tuple((leaf, back[leaf]) for leaf in task.wrt if leaf in back), kept, choices, seconds
    ), trial.met


def _seconds(task: Task, where: Device, nodes: list[Expr]) -> float:
    total = 0.0
    for e in nodes:
        if not is_view(e):
            c = _cost(e, task)
            total += where.seconds(c.flops, ITEM * c.entries) if c.entries else 0.0
    return total


@functools.lru_cache(maxsize=65536)
def _cost(e: Expr, task: Task) -> Cost:
    return cost(e, task.size)


def _keep(task: Task, y: Expr, gradients: list[Expr]) -> tuple[Kept, ...]:
    """Keep what both directions need and what takes a base-sized product per entry to compute again.

    x and the leaves are there anyway. Everything else is computed again from them.
    """
    order = postorder(y)
    forward = set(order)
    by_token: dict[Expr, bool] = {}
    for e in order:
        own = isinstance(e, Draw) or not e.children
        by_token[e] = any(by_token[c] for c in e.children) or (own and depends_on_tokens(e))
    shared = [e for e in reach(gradients, ()) if e in forward and not is_view(e)]
    inner, y_entries = _inner(task), entries(y.dims, task.size)
    threshold = max(WORTH * 2 * inner, CHEAP)
    kept: list[Kept] = []
    halt: list[Expr] = []
    for e in shared:  # operands first
        if entries(e.dims, task.size) == 0:
            continue
        again = sum(_cost(s, task).flops for s in steps([e], halt))
        per_entry = again / entries(e.dims, task.size)
        small = by_token[e] or entries(e.dims, task.size) <= SMALL * y_entries
        if per_entry >= threshold and small:
            halt.append(e)
            kept.append(Kept(e, f"{per_entry:.0f} flops an entry to compute again"))
    used = set(reach(gradients, halt))
    return tuple(k for k in kept if k.node in used)


def _inner(task: Task) -> int:
    """The length of a row of x: what an entry of the base product costs, halved."""
    rows = [e for e in postorder(task.y) if isinstance(e, Leaf) and e.role == "token"]
    return task.size(rows[0].dims[-1]) if rows else 1


@functools.lru_cache(maxsize=512)
def plan(task: Task) -> Plan:
    """The best plan found by descent, over orders and forms in turn: of all changes at one site the best is made,
    until none gains."""
    best, met = evaluate(task, {})
    chosen: dict[str, str] = {}
    settled = 0
    for orders in itertools.cycle((True, False)):
        sites = [(k, c) for k, c in met.items() if k.startswith(ORDER) == orders]
        changes = [{**chosen, k: o} for k, c in sites for o in c.options if o != c.chosen][:CHANGES]
        found = [(*evaluate(task, change), change) for change in changes]
        better = min(found, key=lambda f: f[0].seconds, default=None)
        if better is not None and better[0].seconds < best.seconds * (1 - 1e-9):
            (best, met, chosen), settled = better, 0
        elif (settled := settled + 1) == 2:
            break
    return best


def candidates(task: Task) -> Iterator[Plan]:
    """Every plan that the sites allow, each once: all forms first, then the orders within each form."""
    formed: list[dict[str, str]] = []
    for found, met in _walk(task, [{}], orders=False):
        formed.append({k: c.chosen for k, c in met.items() if not k.startswith(ORDER)})
        yield found
    for found, met in _walk(task, formed, orders=True):
        if any(c.chosen != c.options[0] for k, c in met.items() if k.startswith(ORDER)):
            yield found


def _walk(task: Task, starts: list[dict[str, str]], orders: bool) -> Iterator[tuple[Plan, dict[str, Choice]]]:
    seen: set[tuple[tuple[str, str], ...]] = set()
    queue = deque(starts)
    while queue:
        chosen = queue.popleft()
        found, met = evaluate(task, chosen)
        key = tuple(sorted((k, c.chosen) for k, c in met.items()))
        if key in seen:
            continue
        seen.add(key)
        yield found, met
        for site, choice in met.items():
            if site.startswith(ORDER) == orders:
                queue.extend({**chosen, site: o} for o in choice.options if o != choice.chosen)
