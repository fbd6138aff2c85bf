"""Steps of a layer beside those of others on this machine: a user's own equation, LoRA, and the frozen linear."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import truediv
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn

from adaptc.case import move
from adaptc.explain import explain
from adaptc.method import Adapter
from adaptc.nn.linear import AdaptedLinear

WARM = 0.1  # of the rounds are not counted
DECODED = 1  # tokens of a decoding step
LEAST = 5e-4  # seconds of what is timed at once

Layer = Callable[[Tensor], Tensor]


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, repeat: int = 1, clock: Callable[[], int] | None = None
) -> dict[str, float]:
    """Microseconds of a call, each called in turn so that a busy machine slows all alike: of the first the median, of
    every other that times the median of its ratios to the first, round by round, which a change of clock rate leaves
    alone. clock: nanoseconds; process time by default."""
    read = clock or time.process_time_ns
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = read()
            for _ in range(repeat):
                call()
            found[name].append((read() - start) / repeat / 1e3)
    kept = {name: times[int(WARM * rounds) :] for name, times in found.items()}
    first = next(iter(kept.values()), [])
    usual = statistics.median(first) if first else 0.0
    return {name: usual * statistics.median(map(truediv, times, first)) for name, times in kept.items()}


@dataclass(frozen=True)
class Timing:
    """Rows by name: microseconds of a training and of a decoding step, both over the frozen linear's, the bytes kept
    for backward over those of x, and how many numbers are trained."""

    sizes: dict[str, Any]
    rows: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"sizes": self.sizes, "rows": self.rows}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield ", ".join(f"{name} {value}" for name, value in self.sizes.items())
        table = Table(box=None, pad_edge=False)
        table.add_column("", overflow="fold")
        for title in ("training us", "over frozen", "decoding us", "over frozen", "kept over x", "trained"):
            table.add_column(title, justify="right")
        for name, row in self.rows.items():
            texts = [f"{row[key]:,.1f}" if key.endswith("us") else f"{row[key]:,.2f}" for key in list(row)[:5]]
            table.add_row(name, *texts, f"{row['trained']:,.0f}")
        yield table


def trained(layer: nn.Module) -> list[Tensor]:
    """What a layer trains."""
    return [p for p in layer.parameters() if p.requires_grad]


def training_step(layer: Layer, x: Tensor, gy: Tensor, wrt: Sequence[Tensor]) -> Callable[[], object]:
    """Forward and backward, with the gradients of x and of wrt."""
    x = x.detach().requires_grad_()
    return lambda: torch.autograd.grad(layer(x), [x, *wrt], gy)


def decoding_step(layer: Layer, x: Tensor) -> Callable[[], object]:
    """A forward without gradients, in the mode the layer is in."""

    def call() -> object:
        with torch.no_grad():
            return layer(x)

    return call


def measure(adapters: Mapping[str, Adapter], n: int, k: int, m: int, dtype: str, rounds: int) -> Timing:
    """Times of layers of n x k at m tokens, with adapters that were moved away from their start, beside the frozen
    linear. One thread, process time, medians of interleaved rounds. Raises what attaching an adapter raises."""
    kind, threads = getattr(torch, dtype), torch.get_num_threads()
    base = nn.Linear(k, n, dtype=kind).requires_grad_(False)
    layers: dict[str, nn.Module] = {"frozen linear": base}
    for name, one in adapters.items():
        layers[name] = AdaptedLinear(nn.Linear(k, n, dtype=kind).requires_grad_(False), one)
        move(layers[name], 0)
    x, gy = torch.randn(m, k).to(kind), torch.randn(m, n).to(kind)
    torch.set_num_threads(1)
    try:
        training = _timed(
            {name: training_step(one.train(), x, gy, trained(one)) for name, one in layers.items()}, rounds
        )
        few = x.new_ones(DECODED, k)
        decoding = _timed({name: decoding_step(one.eval(), few) for name, one in layers.items()}, rounds)
    finally:
        torch.set_num_threads(threads)
    kept = {name: explain(one, n, k, m, dtype=dtype).to_dict()["kept"]["over x"] for name, one in adapters.items()}
    rows = {
        name: {
            "training us": training[name],
            "training over frozen": training[name] / training["frozen linear"],
            "decoding us": decoding[name],
            "decoding over frozen": decoding[name] / decoding["frozen linear"],
            "kept over x": float(kept.get(name, 0.0)),
            "trained": sum(p.numel() for p in trained(one)),
        }
        for name, one in layers.items()
    }
    return Timing({"n": n, "k": k, "m": m, "dtype": dtype, "decoded": DECODED, "rounds": rounds}, rows)


def _timed(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    for call in calls.values():  # plans and programs
        call()
    start = time.perf_counter()
    calls["frozen linear"]()
    repeat = max(1, int(LEAST / max(time.perf_counter() - start, 1e-7)))
    return interleaved(calls, rounds, repeat)
