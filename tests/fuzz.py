"""The long run: random expressions over all operators, every candidate plan against the dense float64 reference.

`python tests/fuzz.py` compares 2,000 well-conditioned draws; the suite does the same with a few. A draw is named by its
seed alone: `python tests/fuzz.py --start 17 --draws 1` does draw 17 again. Exit code 1 if anything was wrong.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from itertools import count

import click
import conftest  # noqa: F401 - one core, checks between stages
from fuzzing import REGISTRIES, Case, Outcome, built_in, compare, fired, operators
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from strategies import FORMS

TELL = 50  # draws between two lines, where no bar can be seen


@dataclass
class Tally:
    """What the draws so far found."""

    start: float = field(default_factory=time.perf_counter)
    draws: int = 0
    good: int = 0
    programs: int = 0
    worst: tuple[float, str] = (0.0, "none")
    wrong: list[str] = field(default_factory=list)
    reached: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in REGISTRIES})

    def add(self, case: Case, outcome: Outcome) -> None:
        """Count one draw."""
        self.draws += 1
        self.wrong += outcome.wrong
        if not outcome.good:
            return
        self.good += 1
        self.programs += outcome.programs
        self.worst = max(self.worst, (outcome.worst, str(case)))
        self.reached["operators"].update(operators(*case.drawn))
        self.reached["rules"].update(set().union(*map(fired, case.drawn)))
        self.reached["primitives"].update(outcome.primitives)

    def table(self) -> Table:
        """The summary."""
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_row("draws", f"{self.draws:,}")
        table.add_row("well-conditioned", f"{self.good:,}")
        table.add_row("programs compared", f"{self.programs:,}")
        table.add_row("wrong", f"{len(self.wrong):,}")
        table.add_row("worst error", f"{self.worst[0]:.1e} at {self.worst[1]}")
        for name, counts in self.reached.items():
            ours = built_in(counts, REGISTRIES[name])
            reached = f"{sum(map(bool, ours.values()))} of {len(ours)}"
            listed = ", ".join(f"{one} {times}" for one, times in sorted(ours.items(), key=lambda t: -t[1]))
            table.add_row(name, f"{reached}: {listed}")
        table.add_row("minutes", f"{(time.perf_counter() - self.start) / 60:.1f}")
        return table


def outcome_of(case: Case, plans: int) -> Outcome:
    """What comparing a draw finds; an error is a failure too."""
    try:
        return compare(case, plans)
    except Exception:
        return Outcome(True, wrong=[f"{case} raises\n{traceback.format_exc()}"])


@click.command()
@click.option("--draws", default=2000, show_default=True, help="Well-conditioned draws to compare.")
@click.option("--start", default=0, show_default=True, help="The seed of the first draw.")
@click.option("--plans", default=64, show_default=True, help="Candidates of a draw: all, or so many drawn by its seed.")
def main(draws: int, start: int, plans: int) -> None:
    """Compare candidate plans of random adapters with the dense float64 reference, forward and gradients."""
    console, tally = Console(), Tally()
    forms = list(FORMS)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("", total=draws)
        for seed in count(start):
            case = Case(forms[seed % len(forms)], seed)
            outcome = outcome_of(case, plans)
            tally.add(case, outcome)
            for wrong in outcome.wrong:
                print(f"{wrong}\nagain: python tests/fuzz.py --start {seed} --draws 1", flush=True)
            told = f"{tally.programs:,} programs, {len(tally.wrong)} wrong, worst {tally.worst[0]:.1e}"
            progress.update(bar, completed=tally.good, description=told)
            if not console.is_terminal and tally.draws % TELL == 0:
                print(f"{tally.good} of {draws}: {told}", flush=True)
            if tally.good == draws:
                break
    console.print(tally.table())
    raise SystemExit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()
