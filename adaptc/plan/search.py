"""The search: nested choices, never enumerated together.

Form of each part and last product of each long forward contraction, for all purposes; then a form for one purpose
alone, what is kept, what is computed first: descent, one site at a time, each step scored by forward and backward
together. Order below that: dynamic programming (`order`).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from random import Random

from adaptc.errors import PlanError
from adaptc.plan.device import device
from adaptc.plan.evaluate import (
    AGAIN,
    FIRST,
    KEEP,
    PARAMETERS,
    PURPOSES,
    Chosen,
    Key,
    evaluate,
    price,
    weight_entries,
    x_entries_of,
)
from adaptc.plan.plan import Choice, Plan, Task, is_view

FORMS = ("form",)
APART = ("for", "kept", "first")
STAGES = (("order",), FORMS, APART)
HOPELESS = 2.0  # times the best price: such a change is not tried again
GAIN = 0.01  # of a purpose's time: less is no reason to part from the others
CHANGES = 64  # of one stage, weighed in one round,
STEPS = 2048  # and so many steps of a program in all of them
ALIKE = 4  # sites: more of one kind change together

Change = tuple[tuple[Key, str], ...]


@functools.lru_cache(maxsize=512)
def plan(task: Task, near: frozenset[tuple[Key, str]] = frozenset()) -> Plan:
    """The plan of the least price that keeps to the task's limit. Raises PlanError, naming the least that can be kept.

    Found by descent, over orders, forms and the rest in turn: of all changes at one site the best is made, until none
    gains. near: where it starts, if that is better than where nothing is chosen. Where W' is no larger than x it starts
    twice more, from W' formed: one change at a time does not lead there.
    """
    start: Chosen = dict(near)
    if start and price(evaluate(task, start)[0]) > price(evaluate(task, {})[0]):
        start = {}
    best, chosen = _descent(task, start, _price)
    for other in _formed(task) if not _mostly_calls(best) and _is_cheap_to_form(best) else ():
        best, chosen = min((best, chosen), _descent(task, other, _price), key=lambda found: price(found[0]))
    if best.excess:
        best, _ = _descent(task, chosen, lambda p: (float(p.excess), price(p)))
    if best.excess:
        raise PlanError(_too_little(best))
    return best


def _is_cheap_to_form(found: Plan) -> bool:
    """Is a gradient asked for, and W no larger than x?"""
    task = found.task
    if task.limit is not None or task.kept is not None or not task.wrt:
        return False
    return x_entries_of(task, found.y) >= weight_entries(task) > 0


def _formed(task: Task) -> Iterator[Chosen]:
    """W' formed for all purposes; or for all but the gradients of parameters, which share their products."""
    met = evaluate(task, {})[1]
    dense: Chosen = {k: "dense" for k, c in met.items() if k.of == "form" and "dense" in c.options}
    if not dense:
        return
    yield dense
    apart = {Key("for", k.node, PARAMETERS): "apply" for k in dense}
    met = evaluate(task, {**dense, **apart})[1]
    first = {k: FIRST for k in met if k.of == "first"}
    kept = {k: KEEP for k in met if k.of == "kept"}
    yield {**dense, **apart, **first, **kept}


def departures(found: Plan) -> frozenset[tuple[Key, str]]:
    """The choices of a plan that are not the usual ones, but for what is kept."""
    met = {Key(c.of, c.where.digest, c.purpose): c for c in found.choices if c.of != "kept"}
    return frozenset((k, c.chosen) for k, c in met.items() if _moved(k, c.chosen, met))


def _price(found: Plan) -> tuple[float, float]:
    return 0.0, price(found)


def _too_little(found: Plan) -> str:
    limit = found.task.limit
    assert limit is not None
    if isinstance(limit.amount, int):
        bytes_ = found.saved_bytes(limit.rows, limit.item, limit.wide)
        return f"max_saved is {limit.amount} bytes at {limit.rows} tokens; the least that can be kept is {bytes_} bytes"
    least = math.ceil(found.saved_bytes(1, limit.item, limit.wide) / found.x_bytes * 1e4) / 1e4
    return f"max_saved is '{limit.amount:g}x' of the bytes of x; the least that can be kept is '{least:g}x'"


def _descent(task: Task, start: Chosen, worth: Callable[[Plan], tuple[float, float]]) -> tuple[Plan, Chosen]:
    known: dict[frozenset[tuple[Key, str]], tuple[Plan, dict[Key, Choice]]] = {}

    def assess(assigned: Chosen) -> tuple[Plan, dict[Key, Choice]]:
        key = frozenset(assigned.items())
        if key not in known:
            known[key] = evaluate(task, assigned)
        return known[key]

    best, met = assess(start)
    chosen: Chosen = start
    settled = 0
    tied: dict[tuple[Key, str], Plan] = {}
    hopeless: set[Change] = set()
    for stage in itertools.cycle(STAGES):
        idle = stage != FORMS and not best.excess and _mostly_calls(best)
        changes = [] if idle else [c for c in _changes(met, stage) if c not in hopeless]
        if not best.excess:
            changes = [c for c in changes if all(_worth_parting(best, *one, tied) for one in c)]
        some = changes[: min(CHANGES, max(1, STEPS // max(1, _size(best))))]
        found = [(*assess({**chosen, **dict(c)}), {**chosen, **dict(c)}) for c in some]
        hopeless.update(c for c, f in zip(some, found, strict=True) if price(f[0]) > HOPELESS * price(best))
        if stage == FORMS:
            tied = {one: f[0] for c, f in zip(some, found, strict=True) for one in c}
        gains = sorted((f for f in found if _less(worth(f[0]), worth(best))), key=lambda f: worth(f[0]))
        if len(gains) > 1:  # all of them together may be better still
            every = {**chosen, **{k: o for f in reversed(gains) for k, o in f[2].items() if chosen.get(k) != o}}
            gains.append((*assess(every), every))
        better = min(gains, key=lambda f: worth(f[0]), default=None)
        if better is not None and _pays(better[0], best):
            (best, met, chosen), settled = better, 0
        elif (settled := settled + 1) == len(STAGES):
            break
    return best, chosen


def _mostly_calls(found: Plan) -> bool:
    """Does a plan take less time for arithmetic and traffic than for making its calls? Then only forms, which may have
    fewer, are worth a search."""
    return found.seconds < 2 * _size(found) * device(found.task.device).overhead


def _size(found: Plan) -> int:
    """Steps of a plan that take a call."""
    return sum(not is_view(e) for e in (*found.forward, *found.backward))


def _less(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] < b[0] or (a[0] == b[0] and a[1] < b[1] * (1 - 1e-9))


def _pays(found: Plan, best: Plan) -> bool:
    """Is a gain worth a departure? For a bucket of tokens a tie is not: its neighbours would have other plans for
    nothing."""
    return found.task.kept is None or best.excess > 0 or price(found) < price(best) * (1 - GAIN)


def _changes(met: dict[Key, Choice], stage: tuple[str, ...]) -> list[Change]:
    """Another option at one site, or at all sites that are alike where there are many; what is not kept may ask for
    something to be computed first."""
    alike: dict[object, list[Key]] = {}
    for k, c in met.items():
        if k.of in stage:
            alike.setdefault((k.of, k.purpose, type(c.where), c.where.dims, c.options, c.chosen), []).append(k)
    one: list[Change] = []
    for keys in alike.values():
        together = [keys] if len(keys) > ALIKE else [[k] for k in keys]
        others = [o for o in met[keys[0]].options if o != met[keys[0]].chosen]
        one += [tuple((k, o) for k in some) for some in together for o in others]
    again = [c for c in one if c[0][1] == AGAIN]
    first = [c for c in one if c[0][0].of == "first"]
    return [*one, *((*a, *f) for a, f in itertools.product(again, first))]


def _worth_parting(best: Plan, key: Key, option: str, tied: dict[tuple[Key, str], Plan]) -> bool:
    """Did a purpose gain when all purposes took another form of a part? Or was that not tried?"""
    if key.of != "for":
        return True
    other = tied.get((Key("form", key.node), option))
    if other is None:
        return True
    j = PURPOSES.index(key.purpose)
    return other.apart[j] < best.apart[j] * (1 - GAIN)


def candidates(task: Task) -> Iterator[Plan]:
    """Every plan that the sites allow, each once: all forms first, then orders and the rest within each form."""
    formed: list[Chosen] = []
    for found, met in _walk(task, [{}], ("form",)):
        formed.append({k: c.chosen for k, c in met.items() if k.of == "form"})
        yield found
    for stage in (("order",), APART):
        for found, met in _walk(task, formed, stage):
            if any(_moved(k, c.chosen, met) for k, c in met.items() if k.of in stage):
                yield found


def drawn(task: Task, rng: Random) -> Iterator[Plan]:
    """Plans without end, options drawn at part of the sites that those before met; the first is that of no choices."""
    known: dict[Key, Choice] = {}
    while True:
        part = rng.random()
        found, met = evaluate(task, {k: rng.choice(c.options) for k, c in known.items() if rng.random() < part})
        known.update(met)
        yield found


def _moved(key: Key, option: str, met: Mapping[Key, Choice]) -> bool:
    """Is an option another than it is when nothing is said?"""
    usual = met[Key("form", key.node)].chosen if key.of == "for" else met[key].options[0]
    return option != usual


def _walk(task: Task, starts: list[Chosen], stage: tuple[str, ...]) -> Iterator[tuple[Plan, dict[Key, Choice]]]:
    seen: set[tuple[tuple[Key, str], ...]] = set()
    queue = deque(starts)
    asked = {frozenset(chosen.items()) for chosen in starts}
    while queue:
        chosen = queue.popleft()
        found, met = evaluate(task, chosen)
        key = tuple(sorted((k, c.chosen) for k, c in met.items()))
        if key in seen:
            continue
        seen.add(key)
        yield found, met
        for other in _others(chosen, met, stage):
            if frozenset(other.items()) not in asked:
                asked.add(frozenset(other.items()))
                queue.append(other)


def _others(chosen: Chosen, met: dict[Key, Choice], stage: tuple[str, ...]) -> Iterator[Chosen]:
    """Another option at one site of a stage; of its sites, only those where something unusual is chosen are named."""
    apart = {k: o for k, o in chosen.items() if k.of not in stage}
    here = {k: c.chosen for k, c in met.items() if k.of in stage}
    for site, now in here.items():
        for other in (o for o in met[site].options if o != now):
            yield {**apart, **{k: o for k, o in {**here, site: other}.items() if _moved(k, o, met)}}
