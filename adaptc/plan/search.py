"""The search: nested choices, never enumerated together.

Form of each part and last product of each long forward contraction, for all purposes; then a form for one purpose
alone, what is kept, what is computed first: descent, one site at a time, each step scored by forward and backward
together. Order below that: dynamic programming (`order`).
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Iterator

from adaptc.plan.evaluate import AGAIN, PURPOSES, Chosen, Key, evaluate, price
from adaptc.plan.plan import Choice, Plan, Task

FORMS = ("form",)
STAGES = (("order",), FORMS, ("for", "kept", "first"))
HOPELESS = 2.0  # times the best price: such a change is not tried again
GAIN = 0.01  # of a purpose's time: less is no reason to part from the others
CHANGES = 64  # of one stage, weighed in one round

Change = tuple[tuple[Key, str], ...]


@functools.lru_cache(maxsize=512)
def plan(task: Task) -> Plan:
    """The best plan found by descent, over orders, forms and the rest in turn: of all changes at one site the best is
    made, until none gains."""
    best, met = evaluate(task, {})
    chosen: dict[Key, str] = {}
    settled = 0
    tied: dict[tuple[Key, str], Plan] = {}
    hopeless: set[Change] = set()
    for stage in itertools.cycle(STAGES):
        changes = _changes(met, stage)
        changes = [c for c in changes if c not in hopeless and all(_worth_parting(best, *one, tied) for one in c)]
        found = [(*evaluate(task, {**chosen, **dict(c)}), {**chosen, **dict(c)}) for c in changes[:CHANGES]]
        hopeless.update(c for c, f in zip(changes, found, strict=False) if price(f[0]) > HOPELESS * price(best))
        if stage == FORMS:
            tied = {c[0]: f[0] for c, f in zip(changes, found, strict=False)}
        better = min(found, key=lambda f: price(f[0]), default=None)
        if better is not None and price(better[0]) < price(best) * (1 - 1e-9):
            (best, met, chosen), settled = better, 0
        elif (settled := settled + 1) == len(STAGES):
            break
    return best


def _changes(met: dict[Key, Choice], stage: tuple[str, ...]) -> list[Change]:
    """Another option at one site; what is not kept may ask for something to be computed first."""
    one = [(k, o) for k, c in met.items() if k.of in stage for o in c.options if o != c.chosen]
    again = [c for c in one if c[1] == AGAIN]
    first = [c for c in one if c[0].of == "first"]
    return [*((c,) for c in one), *itertools.product(again, first)]


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
    for stage in (("order",), ("for", "kept", "first")):
        for found, met in _walk(task, formed, stage):
            if any(_moved(k, c, met) for k, c in met.items() if k.of in stage):
                yield found


def _moved(key: Key, choice: Choice, met: dict[Key, Choice]) -> bool:
    """Is a choice another than it is when nothing is said?"""
    usual = met[Key("form", key.node)].chosen if key.of == "for" else choice.options[0]
    return choice.chosen != usual


def _walk(task: Task, starts: list[Chosen], stage: tuple[str, ...]) -> Iterator[tuple[Plan, dict[Key, Choice]]]:
    seen: set[tuple[tuple[Key, str], ...]] = set()
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
            if site.of in stage:
                queue.extend({**chosen, site: o} for o in choice.options if o != choice.chosen)
