"""Is what the planner chooses the fastest? Its candidates, timed on both sides of each change of the plan in m.

`python -m bench planner` prints the time of the chosen plan over that of the fastest candidate and writes
bench/results/planner_cpu.json. A plan is compared with the dense definition in float64 before it is timed. Candidates
keep for backward what the layer keeps, which is the same for every m; without gradients, values of parameters alone are
computed beforehand, as a layer holds them from call to call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from random import Random
from typing import Any

import click
import torch
from torch import Tensor, nn

import adaptc as ac
from adaptc.case import close, compare_gradients, gradients_of, move
from adaptc.codegen.strided import NotStrided
from adaptc.explain.tokens import by_tokens
from adaptc.ir.cost import entries
from adaptc.ir.printer import brief
from adaptc.methods import catalogue
from adaptc.nn.hoisted import alone
from adaptc.plan.evaluate import price, weight_entries
from adaptc.plan.hoist import hoisted
from adaptc.plan.plan import Plan
from adaptc.plan.search import candidates, drawn
from adaptc.runtime.ops import dtypes_of
from adaptc.runtime.planning import bucket
from adaptc.runtime.program import Program, assemble, build, kernels, run, run_rest
from adaptc.runtime.reference import Evaluator
from adaptc.runtime.stack import Stack
from bench.measuring import interleaved, write

METHODS = ("hra", "randlora", "loha", "fourierft")
SIZES = ("768x768",)
WITHIN = 1.10
ROWS = 3  # tokens of the comparison with the dense definition
EACH = 32  # candidates looked at: the first ones, forms before all else, and as many drawn
BEST, SAMPLE = 16, 4  # of them timed beside the chosen one: those of the least predicted price, and some of the rest
HOPELESS = 8.0  # times the predicted price of the choice: too slow to be timed
ROOM = 1 << 27  # entries: a candidate with a larger value is not run
ROUNDS = ((1, 3.0), (3, 1.5))  # before the last ones: how many, and what is slower than so many times the fastest
LEAST, MOST = 9, 200


@dataclass(frozen=True)
class Setting:
    """An adapter on a layer of n x k, with gradients of x and of the adapter, or without any."""

    method: str
    n: int
    k: int
    training: bool

    @cached_property
    def layer(self) -> ac.AdaptedLinear:
        """With trained leaves moved away from their initial values."""
        torch.manual_seed(0)
        base = nn.Linear(self.k, self.n).requires_grad_(False)
        layer = ac.AdaptedLinear(base, catalogue()[self.method]())
        move(layer, 0)
        return layer.train(self.training)

    @cached_property
    def stack(self) -> Stack:
        """What it computes."""
        return self.layer.stack(self.training)

    def arguments(self, m: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """x and everything else; what wants a gradient is a leaf."""
        x = torch.randn(m, self.k, generator=torch.Generator().manual_seed(1)).requires_grad_()
        found = [t.detach().to(dtype) if t.is_floating_point() else t.detach() for t in (x, *self.layer.tensors())]
        for new, t in zip(found, (x, *self.layer.tensors()), strict=True):
            new.requires_grad_(t.requires_grad and self.training)
        return found

    @cached_property
    def signature(self) -> tuple[tuple[str, ...], tuple[bool, ...]]:
        """Dtypes, and which arguments want a gradient."""
        found = self.arguments(1)
        return tuple(dtypes_of(found)), tuple(t.requires_grad for t in found)

    def gy(self, m: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The gradient of y."""
        return torch.randn(m, self.n, generator=torch.Generator().manual_seed(2)).to(dtype)

    def chosen(self, m: int) -> Program:
        """What the layer runs for m tokens."""
        return build(self.stack, self.signature, "cpu", bucket(m, self.n, self.k))

    def assembled(self, one: Plan, few: bool, dtype: torch.dtype = torch.float32) -> Program:
        """The program of a plan, as the layer would run it."""
        given = tuple("float64" if dtype == torch.float64 and d == "float32" else d for d in self.signature[0])
        return assemble(one, self.stack, given, None if few else kernels("cpu"), few)

    def sides(self, most: int) -> list[int]:
        """Numbers of tokens on both sides of each change: the nearest, and those that the plans are made for."""
        ranges = by_tokens(self.stack, self.signature, lambda choices: {})
        found = {m for a, b in pairwise(ranges) for m in (a["at"], a["to"], b["from"], b["at"])}
        return sorted(m for m in found if m <= most) or [min(ranges[0]["at"], most)]


def step(program: Program, arguments: Sequence[Tensor], gy: Tensor) -> Callable[[], list[Tensor]]:
    """A call with all of its gradients; one without any is given what a layer holds."""
    x, *rest = arguments
    if program.wrt:
        wrt = [t for t in arguments if t.requires_grad]

        def both() -> list[Tensor]:
            y = program.call(x, *rest)
            return [y.detach(), *gradients_of(y, wrt, gy)]

        return both
    if program.split is None:
        return lambda: [run(program, x, *rest)]
    values = [alone(v) for v in program.parameters(*(rest[j - 1] for j in program.split.needs))]
    return lambda: [run_rest(program, values, x, *rest)]


def verify(setting: Setting, programs: Sequence[Program]) -> None:
    """y and every gradient of float64 programs are those of the dense definition. Raises LawError."""
    arguments, gy = setting.arguments(ROWS, torch.float64), setting.gy(ROWS, torch.float64)
    values = dict(zip(setting.stack.arguments, arguments, strict=True))
    y = Evaluator(values, torch.float64, rows=ROWS)(setting.stack.output)
    wrt = [t for t in arguments if t.requires_grad]
    exact = gradients_of(y, wrt, gy) if wrt else []
    size = (gy.norm() * y.norm()).detach()
    for program in programs:
        found, *gradients = step(program, arguments, gy)()
        close("plans", found, y, f"y of {setting}")
        compare_gradients("plans", gradients, exact, wrt, size, f"a gradient {{}} of {setting.method}")


def rivals(chosen: Plan) -> tuple[list[Plan], int]:
    """The candidates to be timed beside the choice, and how many there were to pick from."""
    task, rng = chosen.task, Random(0)
    if task.wrt:
        task = replace(task, kept=chosen.kept, limit=None)
    looked = [*islice(candidates(task), EACH), *islice(drawn(task, rng), EACH)]
    found = {(p.y, p.gradients): p for p in looked if p.read == chosen.read and largest(p) <= ROOM}
    found.pop((chosen.y, chosen.gradients), None)
    ranked = sorted((p for p in found.values() if price(p) < HOPELESS * price(chosen)), key=price)
    rest = ranked[BEST:]
    return ranked[:BEST] + rng.sample(rest, min(SAMPLE, len(rest))), len(found) + 1


def largest(one: Plan) -> int:
    """Entries of the largest value that a plan computes."""
    return max(entries(e.dims, one.task.size) for e in (*one.forward, *one.backward))


def held(one: Plan) -> int:
    """Entries that a layer holds from call to call."""
    task = one.task
    return 0 if task.wrt else sum(entries(e.dims, task.size) for e in hoisted(one.y, task, weight_entries(task)))


def text(program: Program) -> str:
    """What a call runs."""
    if program.split is not None:
        return program.split.forward_source.text
    return program.forward_source.text + (program.backward_source.text if program.backward_source else "")


def programs(setting: Setting, m: int) -> tuple[list[Program], int]:
    """What the layer runs, then what its rivals run, each compared with the dense definition; how many candidates."""
    chosen = setting.chosen(m)
    few = chosen.forward_source.strided is not None
    others, seen = rivals(chosen.plan)
    found, wide = {text(chosen): chosen}, [setting.assembled(chosen.plan, few, torch.float64)]
    for other in others:
        try:
            program = setting.assembled(other, few)
        except NotStrided:
            continue
        if found.setdefault(text(program), program) is program:
            wide.append(setting.assembled(other, few, torch.float64))
    verify(setting, wide)
    return list(found.values()), seen


def measure(setting: Setting, m: int, seconds: float) -> dict[str, Any]:
    """The time of the choice over that of the fastest candidate, at m tokens.

    Without gradients, of those that hold no more from call to call; what holding more would give is told beside it.
    """
    every, seen = programs(setting, m)
    arguments, gy = setting.arguments(m), setting.gy(m)
    calls = [step(p, arguments, gy) for p in every]
    lean = [j for j, p in enumerate(every) if held(p.plan) <= held(every[0].plan)]
    more = [0, *(j for j in range(len(every)) if j not in lean)]
    best, ours, theirs = fastest({j: calls[j] for j in lean}, seconds)
    found = {
        "method": setting.method, "n": setting.n, "k": setting.k, "mode": "train" if setting.training else "eval",
        "m": m, "planned for": bucket(m, setting.n, setting.k), "candidates": seen, "timed": len(every),
        "chosen_us": round(ours, 1), "best_us": round(theirs, 1), "ratio": round(ours / theirs, 3),
        "predicted_us": [round(1e6 * price(every[j].plan), 1) for j in (0, best)],
        "best differs in": differences(every[0].plan, every[best].plan),
    }  # fmt: skip
    if len(more) > 1:
        _, ours, theirs = fastest({j: calls[j] for j in more}, seconds)
        found["ratio if more were held"] = round(ours / theirs, 3)
    return found


def fastest(calls: dict[int, Callable[[], object]], seconds: float) -> tuple[int, float, float]:
    """Which call is the fastest, and medians of the first call and of that one, from rounds of these two alone: the
    fastest of many has been lucky. In about so many seconds."""
    for rounds, slow in ROUNDS:
        found = interleaved(calls, rounds)
        calls = {j: c for j, c in calls.items() if j == 0 or found[j] < slow * min(found.values())}
    found = interleaved(calls, within(seconds / 2, found, calls))
    best = min(found, key=found.__getitem__)
    pair = {j: calls[j] for j in {0, best}}
    found = interleaved(pair, within(seconds / 2, found, pair)) if best else found
    return best, found[0], found[best]


def within(seconds: float, times: Mapping[int, float], calls: Iterable[int]) -> int:
    """Rounds that take so long, at least LEAST."""
    return min(max(int(1e6 * seconds / sum(times[j] for j in calls)), LEAST), MOST)


def differences(one: Plan, other: Plan) -> list[str]:
    """The choices of the other that are not those of the one."""
    mine = {(c.of, c.where, c.purpose): c.chosen for c in one.choices}
    named = [(c, mine.get((c.of, c.where, c.purpose))) for c in other.choices]
    return [
        f"{c.of} {c.purpose} {brief(c.where, 40)}: {c.chosen}, not {m}" for c, m in named if m not in (None, c.chosen)
    ]


def shown(r: dict[str, Any]) -> str:
    """A row as text."""
    size, more = f"{r['n']}x{r['k']}", r.get("ratio if more were held", "")
    times = f"{r['chosen_us']:11,.1f} {r['best_us']:11,.1f} {r['ratio']:6.2f} {more:6}"
    line = f"{r['method']:10} {size:>9} {r['mode']:5} {r['m']:5} {r['timed']:5} {times}"
    return line if r["ratio"] <= WITHIN else f"{line}  {'; '.join(r['best differs in'])}"


@click.command()
@click.option("--method", "methods", multiple=True, default=METHODS, help="Of the catalogue; repeatable.")
@click.option("--size", "sizes", multiple=True, default=SIZES, help="Outputs x inputs; repeatable.")
@click.option("--seconds", default=1.0, show_default=True, help="Of timing at each number of tokens.")
@click.option("--most", default=4097, show_default=True, help="Tokens.")
def main(methods: Sequence[str], sizes: Sequence[str], seconds: float, most: int) -> None:
    """Time the chosen plan beside the other candidates where the plan changes in the number of tokens."""
    torch.set_num_threads(1)
    rows = []
    print(f"{'method':10} {'size':>9} mode {'m':>6} timed {'chosen us':>11} {'best us':>11}  ratio   more held")
    for size in sizes:
        n, k = map(int, size.split("x"))
        for setting in (Setting(method, n, k, training) for method in methods for training in (True, False)):
            for m in setting.sides(most):
                rows.append(measure(setting, m, seconds))
                print(shown(rows[-1]), flush=True)
    for where, some in (("where a plan is made for", True), ("beside a change", False)):
        found = [r["ratio"] for r in rows if (r["m"] == r["planned for"]) == some]
        near = sum(ratio <= WITHIN for ratio in found)
        print(f"within {WITHIN - 1:.0%} of the fastest candidate {where}: {near} of {len(found)}")
    write("planner_cpu", within=WITHIN, rows=rows)


if __name__ == "__main__":
    main()
