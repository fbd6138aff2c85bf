"""Every method on the CPU beside the frozen linear, PEFT, LyCORIS and its equation as plain torch operations.

`python -m bench cpu` prints ratios to the frozen linear and writes bench/results/cpu.json, cpu.md and cpu.png. A
training step is a forward and a backward with the gradients of x and of the adapter, over the frozen linear's forward
and gradient of x; a decoding step a forward without gradients. One thread, process time, medians of interleaved rounds.
Nothing is timed before it agrees with the dense definition in float64. That PEFT's layers compute the same from the
same leaves is what tests/test_peft_agreement*.py shows; the result says how many numbers each layer trains.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import adaptc as ac
from adaptc.case import gradients_of, move
from adaptc.runtime.reference import Evaluator
from adaptc.timing import decoding_step, trained, training_step
from bench import measuring
from bench.cpu_rows import ROWS, Row, of_lycoris, of_peft
from bench.measuring import interleaved, machine, settle_memory, write

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIZES = ("512x768x768", "2048x1024x1024", "2048x1024x1024:bfloat16")
DECODED, DECODE = (1, 4, 16), (1024, 1024)
ROWS_CHECKED = 3  # tokens of the comparison with the dense definition
SECONDS = 20.0  # a call that takes longer is not repeated
PEERS = ("adaptc", "peft", "lycoris", "eager")
COLOURS = {"adaptc": "#0072b2", "peft": "#d55e00", "lycoris": "#009e73", "eager": "#999999"}


@dataclass(frozen=True)
class Size:
    """Tokens, inputs, outputs, dtype."""

    m: int
    k: int
    n: int
    dtype: str = "float32"

    @classmethod
    def parse(cls, text: str) -> Size:
        """MxKxN or MxKxN:DTYPE. Raises BadParameter."""
        numbers, _, dtype = text.partition(":")
        try:
            m, k, n = map(int, numbers.split("x"))
        except ValueError as error:
            raise click.BadParameter(f"'{text}' is not MxKxN or MxKxN:DTYPE") from error
        if dtype and dtype not in DTYPES:
            raise click.BadParameter(f"'{dtype}' is none of {', '.join(DTYPES)}")
        return cls(m, k, n, dtype or "float32")

    def __str__(self) -> str:
        return f"{self.m}x{self.k}x{self.n}:{self.dtype}"

    @property
    def base(self) -> nn.Linear:
        """A frozen linear of these sizes."""
        torch.manual_seed(0)
        return nn.Linear(self.k, self.n).to(DTYPES[self.dtype]).requires_grad_(False)

    def tokens(self, count: int) -> Tensor:
        """Some x."""
        return torch.randn(count, self.k, generator=torch.Generator().manual_seed(1)).to(DTYPES[self.dtype])


def eager(layer: ac.AdaptedLinear) -> Callable[[Tensor], Tensor]:
    """The layer's equation as it is written, one torch operation after the other."""
    composed = layer.stack(training=True)
    leaves = dict(zip(composed.arguments[1:], layer.tensors(), strict=True))

    def call(x: Tensor) -> Tensor:
        return Evaluator({composed.arguments[0]: x, **leaves}, torch.float32, rows=len(x))(composed.output).to(x.dtype)

    return call


def verify(layer: ac.AdaptedLinear, size: Size) -> None:
    """y and all gradients: off from the dense definition in float64 by at most twice what it is off in float32, and two
    roundings of its size. Raises Red."""
    x = size.tokens(ROWS_CHECKED).requires_grad_()
    gy = torch.randn(ROWS_CHECKED, size.n, generator=torch.Generator().manual_seed(2)).to(x.dtype)
    arguments = [x, *layer.tensors()]
    found = layer(x)
    ours = [found, *gradients_of(found, [t for t in arguments if t.requires_grad], gy)]
    exact, plain = (dense(layer, arguments, gy, dtype) for dtype in (torch.float64, torch.float32))
    size_of = gy.double().norm() * exact[0].norm()
    for j, (got, right, torchs) in enumerate(zip(ours, exact, plain, strict=True)):
        scale = torch.maximum(right.norm(), size_of if j else right.norm())
        bound = 2 * (torchs.detach().double() - right).norm() + 2 * torch.finfo(DTYPES[size.dtype]).eps * scale
        error = (got.detach().double() - right).norm()
        if not error <= bound:
            what = f"gradient {j}" if j else "y"
            raise Red(f"{what} is off by {float(error):.2g}, the bound is {float(bound):.2g}")


class Red(Exception):
    """Numbers that do not agree."""


def dense(layer: ac.AdaptedLinear, arguments: Sequence[Tensor], gy: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """y and its gradients by the equation's dense definition in a dtype."""
    composed = layer.stack(training=True)
    given = [t.detach().to(dtype) if t.is_floating_point() else t.detach() for t in arguments]
    for new, old in zip(given, arguments, strict=True):
        new.requires_grad_(old.requires_grad)
    y = Evaluator(dict(zip(composed.arguments, given, strict=True)), dtype, rows=len(gy))(composed.output)
    return [y.detach(), *gradients_of(y, [t for t in given if t.requires_grad], gy.to(dtype))]


def steps(
    row: Row, size: Size, decode: bool, peers: Sequence[str]
) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """A call for each peer; how many numbers each trains, and what a peer lacks."""
    layers: dict[str, Any] = {}
    ours = ac.AdaptedLinear(size.base, row.adapter(size.n, size.k))
    move(ours, 0)
    verify(ours, size)
    layers["adaptc"] = ours.train(not decode)
    missing: dict[str, str] = {}
    for peer, made in (("peft", of_peft), ("lycoris", of_lycoris)):
        if peer not in peers:
            continue
        try:
            found = made(row, size.base)
        except ImportError as error:  # the row says so
            missing[peer] = str(error)
            continue
        if found is not None:
            layers[peer] = found.train(not decode)
    facts: dict[str, Any] = {"trained": {name: sum(p.numel() for p in trained(one)) for name, one in layers.items()}}
    facts |= {"missing": missing} if missing else {}
    x = size.tokens(size.m)
    gy = torch.randn(size.m, size.n, generator=torch.Generator().manual_seed(2)).to(x.dtype)
    if decode:
        calls = {name: decoding_step(layer, x) for name, layer in layers.items()}
        return {"frozen": decoding_step(size.base, x), **calls}, facts
    calls = {name: training_step(layer, x, gy, trained(layer)) for name, layer in layers.items()}
    if "eager" in peers:
        calls["eager"] = training_step(eager(ours), x, gy, trained(ours))
    return {"frozen": training_step(size.base, x, gy, []), **calls}, facts


def measure(name: str, size: Size, decode: bool, peers: Sequence[str], rounds: int) -> dict[str, Any]:
    """One row: microseconds of the frozen linear, and everything else over it."""
    calls, more = steps(ROWS[name], size, decode, peers)
    slow = {}
    for peer, call in list(calls.items()):
        try:
            call()  # plans, programs, threads
        except RuntimeError as error:
            if peer in ("frozen", "adaptc"):
                raise
            more.setdefault("missing", {})[peer] = str(error)  # the row says so
            del calls[peer]
            continue
        seconds = _once(call)
        if seconds > SECONDS:
            slow[peer] = seconds * 1e6
            del calls[peer]
    repeat = max(1, math.ceil(5e-4 / max(1e-7, _once(calls["frozen"]))))
    found = {**interleaved(calls, rounds, repeat), **slow}
    frozen = found.pop("frozen")
    ratios = {peer: round(t / frozen, 3) for peer, t in found.items()}
    return {
        "row": name,
        "size": str(size),
        "decode": decode,
        "frozen us": round(frozen, 1),
        **ratios,
        **more,
    }


def _once(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Ratios to the frozen linear, the least of each row in bold."""
    made = Table(title=title)
    made.add_column("row")
    for peer in PEERS:
        made.add_column(peer, justify="right")
    for r in rows:
        least = min(r[p] for p in PEERS if p in r)
        made.add_row(
            r["row"], *((f"[bold]{r[p]:.2f}" if r[p] == least else f"{r[p]:.2f}") if p in r else "-" for p in PEERS)
        )
    return made


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same as text, a table a size."""
    where = ", ".join(f"{name} {value}" for name, value in machine().items())
    lines = ["# Training and decoding steps over the frozen linear's", "", f"`python -m bench cpu`; {where}", ""]
    for title in dict.fromkeys(_title(r) for r in rows):
        lines += [f"## {title}", "", f"| row | {' | '.join(PEERS)} |", f"|---|{'---:|' * len(PEERS)}"]
        for r in rows:
            if _title(r) == title:
                lines.append(f"| {r['row']} | {' | '.join(f'{r[p]:.2f}' if p in r else '-' for p in PEERS)} |")
        lines.append("")
    return "\n".join(lines)


def _title(r: Mapping[str, Any]) -> str:
    return f"{'decoding' if r['decode'] else 'training'} {r['size']}"


def picture(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Ratios of the first size, peers beside each other."""
    from matplotlib.figure import Figure

    first = [r for r in rows if _title(r) == _title(rows[0])]
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    axes = figure.subplots()
    for peer in PEERS:
        at = [j for j, r in enumerate(first) if peer in r]
        axes.plot(at, [first[j][peer] for j in at], "o", label=peer, color=COLOURS[peer], markersize=5)
    axes.axhline(1.0, color="black", linewidth=0.8, label="frozen linear")
    axes.set_yscale("log")
    axes.set_yticks([1, 1.5, 2, 3, 5, 10, 20], labels=["1", "1.5", "2", "3", "5", "10", "20"])
    axes.set_xticks(range(len(first)), [r["row"] for r in first], rotation=60, ha="right")
    axes.set_ylabel("time over the frozen linear's")
    axes.set_title(f"{_title(rows[0])} (tokens x inputs x outputs), one CPU thread")
    axes.legend(ncols=5)
    figure.savefig(path, dpi=110)


@click.command()
@click.option("--row", "names", multiple=True, type=click.Choice(list(ROWS)), help="Only these rows.")
@click.option("--size", "sizes", multiple=True, default=SIZES, show_default=True, help="MxKxN or MxKxN:DTYPE.")
@click.option("--peer", "peers", multiple=True, type=click.Choice(PEERS[1:]), default=PEERS[1:], help="Beside ours.")
@click.option("--decode/--no-decode", default=True, show_default=True, help="Steps of 1, 4 and 16 tokens too.")
@click.option("--rounds", default=9, show_default=True, help="Of which the median is taken.")
def main(names: tuple[str, ...], sizes: tuple[str, ...], peers: tuple[str, ...], decode: bool, rounds: int) -> None:
    """Training and decoding steps of every method beside the frozen linear, PEFT, LyCORIS and plain torch."""
    torch.set_num_threads(1)
    settle_memory()
    asked = [(Size.parse(s), False) for s in sizes]
    asked += [(Size(m, *DECODE), True) for m in DECODED if decode]
    rows, red = [], []
    for size, decodes in asked:
        some = []
        for name in names or ROWS:
            try:
                some.append(measure(name, size, decodes, peers, rounds))
            except Red as error:  # a red case gets no time
                red.append({"row": name, "size": str(size), "decode": decodes, "error": str(error)})
                print(f"{name} at {size}: RED: {error}", flush=True)
                continue
            print("  ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in some[-1].values()), flush=True)
        rows += some
        Console().print(table(some, _title(some[0])) if some else "nothing agreed")
    write("cpu", rounds=rounds, rows=rows, red=red)
    (measuring.RESULTS / "cpu.md").write_text(markdown(rows))
    if rows:
        picture(rows, measuring.RESULTS / "cpu.png")
    if red:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
