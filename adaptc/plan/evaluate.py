"""One assignment of options to sites -> the plan it gives, and the sites it met.

Forward, the gradient of x, and the gradients of parameters are three purposes: they take the same form of a part
unless a choice sets one of them apart. What forward and backward then share can be kept.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

from adaptc.ir.cost import Cost, cost, entries
from adaptc.ir.expand import FLAT, Site, expand, settled
from adaptc.ir.expr import Expr, postorder
from adaptc.ir.prims import At, Cholesky, Contract, Draw, Leaf, Put, Reduce, Solve, Take
from adaptc.ir.vjp import vjp
from adaptc.plan.device import Device, device
from adaptc.plan.factor import factored
from adaptc.plan.hoist import hoisted, rent
from adaptc.plan.order import ITEM, Name, Orders, spell
from adaptc.plan.plan import (
    CALL_ROLES,
    Choice,
    Kept,
    Plan,
    Task,
    depends_on_tokens,
    is_view,
    number,
    reach,
    steps,
)
from adaptc.plan.sampled import fused
from adaptc.plan.spectra import half_spectra, only_real

FORWARD, INPUT, PARAMETERS = "forward", "the gradient of x", "the gradients of parameters"
PURPOSES = (FORWARD, INPUT, PARAMETERS)
KEEP, AGAIN = "keep", "compute again"
NEEDED, FIRST = "as needed", "first"
WORTH = 0.25  # of a base product per entry: what costs as much to recompute is kept; so much is a kept x worth
CHEAP = 16  # flops an entry: such a value is never kept
DEAR = 64  # flops an entry: a value of parameters alone that takes less is computed again
LITTLE = 0.25  # of x: what is smaller may be kept in its place
TURNED = 4  # passes over the operands of a sampled product: they are transposed, and read by column
SCATTERED = 0.5  # passes over the products that a scatter of scaled columns never writes
FACTORISED = 8.0  # times the operations of a factorisation, measured on small blocks
HALF = 0.5  # of the time of a whole spectrum
GATHERED = 3  # passes over what is picked by index
MANY = 16  # contractions whose parts are compared
PARTS = 4  # of them, that may be computed first
SMALL = 0.07  # of y: larger values of parameters alone are computed again, or kept where that pays


class Key(NamedTuple):
    """The name of a site: what is decided, at which node, for which purpose alone."""

    of: str
    node: str
    purpose: str = ""


Chosen = Mapping[Key, str]


@dataclass
class _Trial:
    """One assignment, and the sites it met."""

    task: Task
    chosen: Chosen
    met: dict[Key, Choice] = field(default_factory=dict)

    def pick(self, key: Key, node: Expr, options: tuple[str, ...], default: str) -> str:
        """The option of a site: assigned, or the default."""
        option = self.chosen.get(key, default)
        option = option if option in options else default
        seen = self.met.get(key)
        every = tuple(dict.fromkeys((*(seen.options if seen else ()), *options)))
        self.met[key] = Choice(node, option, every, key.of, key.purpose)
        return option

    def form(self, site: Site, purpose: str) -> str:
        """The form of a part: the purpose's own, or everybody's."""
        everybody = self.pick(Key("form", site.node.digest), site.node, site.options, site.options[0])
        if not self.task.wrt:
            return everybody
        return self.pick(Key("for", site.node.digest, purpose), site.node, site.options, everybody)

    def last_product(self, node: Contract, count: int) -> int:
        """Which of a contraction's best last products."""
        options = tuple(f"order {j}" for j in range(count))
        return options.index(self.pick(Key("order", node.digest), node, options, options[0]))


def evaluate(task: Task, chosen: Chosen) -> tuple[Plan, dict[Key, Choice]]:
    """The plan of one assignment: expand, differentiate, order, keep."""
    trial, where = _Trial(task, chosen), device(task.device)
    y, gradients = _expanded(trial)
    orders = Orders(where, functools.cache(task.size), trial.last_product)
    flat_y, *flat = settled([y, *gradients.values()])
    ordered = orders.order(flat_y)
    if task.kept is not None:  # nothing else of forward is there in backward
        there = [k.node for k in task.kept]
        orders.forget([e for e in postorder(ordered) if isinstance(e, Contract)], there)
        for e in there:
            orders.learn(e)
    orders.pick, orders.bare = lambda node, count: 0, True
    _first(trial, orders, flat)
    ordered, *back = factored([ordered, *orders.order_all(flat)])
    kept = _keep(trial, ordered, back)
    again = [c.where for c in trial.met.values() if c.chosen == AGAIN and c.options[0] == KEEP]
    if again:
        orders.forget(again)
        ordered, *back = factored([ordered, *orders.order_all(flat)])
        kept = _keep(trial, ordered, back, again)
    found = dict(zip(gradients, back, strict=True))
    given = [k.node for k in kept]
    roots = [[ordered, *given], *([found[e] for e in _leaves(task, p) if e in found] for p in (INPUT, PARAMETERS))]
    apart = tuple(_seconds(task, where, steps(r, given if j else ())) for j, r in enumerate(roots))
    seconds = apart[0] + _seconds(task, where, steps(back, given))
    if not task.wrt:  # values of parameters alone are held from call to call
        weight = weight_entries(task)
        held = hoisted(ordered, task, weight)
        seconds = _seconds(task, where, steps([ordered], held))
        seconds += sum(rent(task, int(entries(e.dims, task.size)), weight) for e in held)
    return Plan(task, ordered, tuple(found.items()), kept, tuple(trial.met.values()), seconds, apart), trial.met


def _expanded(trial: _Trial) -> tuple[Expr, dict[Leaf, Expr]]:
    """y and the gradients, each from the form that its purpose takes."""
    task = trial.task
    y = expand(task.y, lambda site: trial.form(site, FORWARD))
    alike = not any(key.of == "for" for key in trial.chosen)
    if alike:
        for key, c in [(k, c) for k, c in trial.met.items() if k.of == "form"]:
            for purpose in (INPUT, PARAMETERS):
                trial.pick(Key("for", key.node, purpose), c.where, c.options, c.chosen)
    found: dict[Leaf, Expr] = {}
    for purpose in (INPUT, PARAMETERS):
        wrt = _leaves(task, purpose)
        if wrt:
            form = y if alike else expand(task.y, lambda site, p=purpose: trial.form(site, p))  # type: ignore[misc]
            grads = vjp(form, task.gy, wrt)
            found.update((leaf, grads[leaf]) for leaf in wrt if leaf in grads)
    return y, {leaf: found[leaf] for leaf in task.wrt if leaf in found}


def _leaves(task: Task, purpose: str) -> list[Leaf]:
    """The leaves whose gradients a purpose is."""
    return [leaf for leaf in task.wrt if (leaf.role == "token") == (purpose == INPUT)]


def _first(trial: _Trial, orders: Orders, gradients: Sequence[Expr]) -> None:
    """Products over all tokens that several gradients could share: computed first, they are free for all."""
    every = [e for e in dict.fromkeys(postorder(*gradients)) if isinstance(e, Contract) and len(e.operands) > 2]
    names: Counter[Name] = Counter()
    for e in every[:MANY]:
        names.update(_over_tokens(e))
        names.update(_projections(e))
    shared_most = sorted((n for n, count in names.items() if count > 1), key=lambda n: (-names[n], len(n[1])))
    for spec, operands in shared_most[:PARTS]:
        shared = Contract(spec, operands)
        if trial.pick(Key("first", shared.digest), shared, (NEEDED, FIRST), NEEDED) == FIRST:
            orders.order(shared)


def _projections(e: Contract) -> list[Name]:
    """The parts of a contraction that are a token matrix times one other operand, by their canonical names."""
    inputs, out = e.terms
    pairs = sorted(zip(inputs, e.operands, strict=True), key=lambda t: (t[1].digest, t[0]))
    found: dict[Name, None] = {}
    for i, j in combinations(range(len(pairs)), 2):
        rows = [isinstance(pairs[p][1], Leaf) and depends_on_tokens(pairs[p][1]) for p in (i, j)]
        part = [pairs[i], pairs[j]]
        others = set(out).union(*(t for p, (t, _) in enumerate(pairs) if p not in (i, j)))
        letters = dict.fromkeys("".join(t for t, _ in part))
        if sum(rows) == 1 and not set(letters) <= others:
            kept = "".join(c for c in letters if c in others)
            found[spell([t for t, _ in part], kept), tuple(op for _, op in part)] = None
    return list(found)


def _over_tokens(e: Contract) -> list[Name]:
    """The parts of a contraction that join two token matrices and sum over tokens, by their canonical names."""
    (inputs, out) = e.terms
    pairs = sorted(zip(inputs, e.operands, strict=True), key=lambda t: (t[1].digest, t[0]))
    rows = [j for j, (_, op) in enumerate(pairs) if isinstance(op, Leaf) and depends_on_tokens(op)]
    if len(rows) != 2 or len(pairs) > FLAT:
        return []
    found: dict[Name, None] = {}
    others = [j for j in range(len(pairs)) if j not in rows]
    for count in range(len(others)):
        for more in combinations(others, count):
            part = [pairs[j] for j in sorted((*rows, *more))]
            rest = "".join(t for j, (t, _) in enumerate(pairs) if j not in rows and j not in more)
            letters = dict.fromkeys("".join(t for t, _ in part))
            kept = "".join(c for c in letters if c in out or c in rest)
            if pairs[rows[0]][0][0] not in kept:
                found[spell([t for t, _ in part], kept), tuple(op for _, op in part)] = None
    return list(found)


def _seconds(task: Task, where: Device, nodes: list[Expr]) -> float:
    return sum(step_seconds(task, where, nodes).values())


def _passes(e: Expr) -> int:
    """How many times the traffic of its entries a step takes: two of complex numbers, more where they are gathered."""
    double = 2 if "complex" in (e.kind, *(c.kind for c in e.children)) else 1
    return double * (GATHERED if isinstance(e, (Take, Put)) and any(isinstance(i, At) for i in e.index) else 1)


def step_seconds(task: Task, where: Device, nodes: list[Expr]) -> dict[Expr, float]:
    """Predicted seconds of the steps of a program, of those that take any."""
    found = {}
    read, unmade = fused(nodes, ())
    half = half_spectra(nodes, read, unmade, ())
    for e, t in only_real(nodes, read, ()).items():
        half |= {t, t.x}
        unmade.add(e)
    for e in nodes:
        if not is_view(e) and e not in unmade:
            c = _cost(e, task.at)
            moved = _passes(e) * c.entries
            if e in read:
                moved = TURNED * sum(entries(t.dims, task.size) for t in read[e].read if depends_on_tokens(t))
                if isinstance(e, Put):
                    moved += TURNED * entries(e.dims, task.size) + SCATTERED * entries(e.x.dims, task.size)
                moved *= 2 if e.kind == "complex" else 1
            part = HALF if e in half else 1.0
            if moved:
                products = c.gemm * _precision(e, where)
                found[e] = where.seconds(products, part * ITEM * moved, part * _slowness(e) * (c.flops - c.gemm))
    return found


def _precision(e: Expr, where: Device) -> float:
    """How many times longer a product takes than one of tokens: on a GPU tokens have 16 bits, parameters 32."""
    return where.flops / where.rate("float32") if where.kind == "cuda" and not depends_on_tokens(e) else 1.0


def _slowness(e: Expr) -> float:
    """How many times longer an operation takes than elsewhere: those of a factorisation wait for each other."""
    return FACTORISED if isinstance(e, (Solve, Cholesky)) else 1.0


@functools.lru_cache(maxsize=65536)
def _cost(e: Expr, at: tuple[tuple[object, int], ...]) -> Cost:
    return cost(e, lambda d: number(d, at))


def _keep(trial: _Trial, y: Expr, gradients: Sequence[Expr], again: Sequence[Expr] = ()) -> tuple[Kept, ...]:
    """Keep what both directions need and what takes a base-sized product per entry to compute again, if the
    assignment does not say otherwise.

    x and the leaves are there anyway. Everything else is computed again from them.
    """
    task = trial.task
    if task.kept is not None:
        return task.kept
    order = postorder(y)
    forward = set(order)
    by_token: dict[Expr, bool] = {}
    for e in order:
        own = isinstance(e, Draw) or not e.children
        by_token[e] = any(by_token[c] for c in e.children) or (own and depends_on_tokens(e))
    shared = [e for e in reach(gradients, ()) if e in forward and not is_view(e) and not _compared(e)]
    inner, y_entries = _inner(task), entries(y.dims, task.size)
    threshold = max(WORTH * 2 * inner, CHEAP)
    x_entries = x_entries_of(task, y)
    kept: list[Kept] = []
    halt: list[Expr] = []
    little: list[Expr] = []
    most = _flops_at_most(order, task)
    for e in shared:  # operands first
        size = entries(e.dims, task.size)
        if size == 0 or e in again:
            continue
        below = most[e] < threshold * size  # then so is the sum without repeats
        per_entry = (most[e] if below else sum(_slowness(s) * _cost(s, task.at).flops for s in steps([e], halt))) / size
        reason = f"{per_entry:.0f} flops an entry to compute again"
        if per_entry < threshold:
            if not by_token[e] or size > LITTLE * x_entries:
                continue
            little.append(e)
            if trial.chosen.get(Key("kept", e.digest)) != KEEP:
                continue
            reason = "smaller than what it is made of"
        elif not by_token[e] and (per_entry < DEAR or not _has_room(trial, e, y_entries, x_entries)):
            continue
        halt.append(e)
        kept.append(Kept(e, reason))
    _offer(trial, little, gradients, halt)
    used = set(reach(gradients, halt))
    found = [k for k in kept if k.node in used]
    asked = task.limit is not None  # without a limit, values of parameters alone are too small to be asked for
    return tuple(k for k in found if not (asked or by_token[k.node]) or _kept(trial, k.node, KEEP))


def _has_room(trial: _Trial, e: Expr, y_entries: float, x_entries: float) -> bool:
    """Is a value of parameters alone small beside y? Up to the size of x the price decides."""
    size = entries(e.dims, trial.task.size)
    return size <= SMALL * y_entries or (size <= x_entries and _kept(trial, e, AGAIN))


def _compared(e: Expr) -> bool:
    """Does backward look for a value among those it came from? Computed again, they may round otherwise than it did."""
    return isinstance(e, Reduce) and e.op == "max"


def _flops_at_most(order: Sequence[Expr], task: Task) -> dict[Expr, float]:
    """No fewer flops than each value takes from the leaves: what is shared below counts again and again, or everything
    before it does."""
    most: dict[Expr, float] = {}
    before = 0.0
    for e in order:
        flops = _slowness(e) * _cost(e, task.at).flops
        before += flops
        most[e] = min(before, flops + sum(most[c] for c in e.children))
    return most


def _offer(trial: _Trial, little: Sequence[Expr], gradients: Sequence[Expr], halt: Sequence[Expr]) -> None:
    """Small values may be kept where all of them together would spare something larger."""

    def read(stop: Sequence[Expr]) -> set[Expr]:
        nodes = reach(gradients, stop)
        return {e for e in nodes if e in halt or (isinstance(e, Leaf) and e.role in CALL_ROLES)}

    spares = little and read(halt) != read([*halt, *little])
    for e in little:
        if spares or e in halt:
            _kept(trial, e, AGAIN)


def _kept(trial: _Trial, e: Expr, default: str) -> bool:
    """Is a value kept that usually is, or is not?"""
    key = Key("kept", e.digest)
    options = (KEEP, AGAIN) if default == KEEP else (AGAIN, KEEP)
    if key in trial.met:
        return trial.met[key].chosen == KEEP
    return trial.pick(key, e, options, default) == KEEP


def weight_entries(task: Task) -> int:
    """The entries of W."""
    W = [e for e in postorder(task.y) if isinstance(e, Leaf) and e.role == "weight"]
    return int(entries(W[0].dims, task.size)) if W else 0


def x_entries_of(task: Task, y: Expr) -> int:
    """The entries of x."""
    return task.size(y.dims[0]) * _inner(task)


def _inner(task: Task) -> int:
    """The length of a row of x: what an entry of the base product costs, halved."""
    rows = [e for e in postorder(task.y) if isinstance(e, Leaf) and e.role == "token"]
    return task.size(rows[0].dims[-1]) if rows else 1


def price(plan: Plan) -> float:
    """What the search makes small: predicted seconds, and what is kept at the price of computing it again."""
    task, where = plan.task, device(plan.task.device)
    if not plan.gradients:
        return plan.seconds
    base = 2 * entries(plan.y.dims, task.size) * _inner(task) / where.flops
    x = x_entries_of(task, plan.y) or 1
    own = [e for e in plan.read if e.role == "token"]
    saved = sum(int(entries(e.dims, task.size)) for e in (*own, *(k.node for k in plan.kept)))
    return plan.seconds + WORTH * base * saved / x
