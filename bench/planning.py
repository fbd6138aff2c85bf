"""Seconds to plan one layer of 4096 x 4096, for every method: the first time, and when the plan is known.

`python -m bench planning` prints a table and writes bench/results/planning_cpu.json. CPU time of one process, of a
training step and of a call without gradients at 1,024 tokens; the largest of each over all methods is what counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from adaptc.methods import catalogue
from adaptc.plan.plan import NOMINAL
from adaptc.runtime.planning import Signature, planned
from adaptc.runtime.stack import stack
from bench.measuring import write

SIZE, REPEAT = 4096, 100


def seconds(call: Callable[[], object], repeat: int = 1) -> float:
    """CPU seconds of a call, the mean of some."""
    start = time.process_time()
    for _ in range(repeat):
        call()
    return (time.process_time() - start) / repeat


def measure(name: str) -> dict[str, float]:
    """Of one method."""
    found = {}
    for mode in ("train", "eval"):
        start = time.process_time()
        composed = stack(((catalogue()[name]().trace(SIZE, SIZE), 0.0),), SIZE, SIZE, True, mode == "train")
        wants = tuple(mode == "train" and leaf.role in ("token", "param") for leaf in composed.arguments)
        dtypes = tuple("int64" if leaf.kind == "integer" else "float32" for leaf in composed.arguments)
        signature: Signature = (dtypes, wants)
        planned(composed, signature, "cpu", NOMINAL)
        found[mode] = round(time.process_time() - start, 4)
        again = seconds(lambda s=composed, of=signature: planned(s, of, "cpu", NOMINAL), REPEAT)  # type: ignore[misc]
        found[f"{mode}, known"] = round(again, 7)
    return found


@click.command()
def main() -> None:
    """Measure, print, write."""
    rows = {name: measure(name) for name in catalogue()}
    slowest = sorted(rows, key=lambda name: -max(rows[name].values()))
    print(f"{'method':18}{'train':>9}{'eval':>9}   seconds; known: milliseconds")
    for name in slowest:
        r = rows[name]
        print(f"{name:18}{r['train']:9.3f}{r['eval']:9.3f}{1e3 * r['train, known']:9.3f}{1e3 * r['eval, known']:9.3f}")
    most = {key: max(r[key] for r in rows.values()) for key in next(iter(rows.values()))}
    print("most", most)
    write("planning_cpu", size=SIZE, tokens=NOMINAL, most=most, rows=rows)


if __name__ == "__main__":
    main()
