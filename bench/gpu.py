"""Every method of the table of targets on a GPU, beside the frozen linear, PEFT, LyCORIS and torch.compile.

`python -m bench gpu` prints ratios to the frozen linear and writes gpu.json and gpu.md to bench/results. A training
step is a forward and a backward with the gradients of x and of the adapter, over the frozen linear's forward and
gradient of x: in wall time with Python, and inside a CUDA graph. A decoding step is a forward of few tokens inside a
CUDA graph. Nothing is timed before it agrees with the dense definition. Without a GPU, TRITON_INTERPRET=1 rehearses all
of it at tiny sizes, where times mean nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import adaptc as ac
from adaptc.case import gradients_of, move
from adaptc.runtime import generated, program
from adaptc.runtime.reference import Evaluator
from adaptc.timing import decoding_step, trained, training_step
from bench import measuring
from bench.cpu_rows import ROWS as EVERY_ROW
from bench.cpu_rows import Row, of_lycoris, of_peft, row
from bench.measuring import machine, write

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
SIZES = ((8192, 4096, 4096), (8192, 4096, 11008)) if GPU else ((16, 64, 64),)
DECODED = (1, 4, 16) if GPU else (1,)
DTYPE = torch.bfloat16 if GPU else torch.float32  # the interpreter has no bfloat16
CHECKED = 64 if GPU else 3  # tokens of the comparison with the dense definition
ROUNDS, REPEAT = (9, 10) if GPU else (1, 1)
LORA16 = row(
    "lora", {"r": 16, "alpha": 16.0}, "Lora", {"r": 16, "lora_alpha": 16}, "LoCon", {"lora_dim": 16, "alpha": 16}
)
NAMES = (
    "dora", "hra", "oft", "boft_m2", "road", "vera", "lokr", "c3a", "shira", "miss", "loha", "hira", "glora",
)  # fmt: skip
ROWS: dict[str, Row] = {"lora_r16": LORA16, **{name: EVERY_ROW[name] for name in NAMES}}
GOALS = {"lora_r16": 1.10, "loha": 1.75, "hira": 1.75, "glora": 1.75}
GOAL, DECODE_GOAL = 1.25, 1.05
PEERS = ("adaptc", "peft", "lycoris", "compiled")


@dataclass(frozen=True)
class Size:
    """Tokens, inputs, outputs."""

    m: int
    k: int
    n: int

    def __str__(self) -> str:
        return f"{self.m}x{self.k}x{self.n}"

    @property
    def base(self) -> nn.Linear:
        """A frozen linear of these sizes."""
        torch.manual_seed(0)
        return nn.Linear(self.k, self.n).to(DEVICE, DTYPE).requires_grad_(False)


def tokens(m: int, width: int) -> Tensor:
    """Some x, or gradient of y."""
    return torch.randn(m, width, generator=torch.Generator().manual_seed(m)).to(DEVICE, DTYPE)


def dense(layer: ac.AdaptedLinear, x: Tensor, wide: torch.dtype) -> Tensor:
    """y by the equation's dense definition in a dtype."""
    composed = layer.stack(True)
    given = [t.to(wide) if t.is_floating_point() else t for t in (x, *layer.tensors())]
    return Evaluator(dict(zip(composed.arguments, given, strict=True)), wide, rows=len(x))(composed.output)


def off(layer: ac.AdaptedLinear, size: Size) -> str:
    """What disagrees with the dense definition; nothing, if nothing does."""
    x = tokens(CHECKED, size.k).requires_grad_()
    y = layer(x)
    with torch.no_grad():
        right, plain = dense(layer, x, torch.float64), dense(layer, x, torch.float32)
    bound = 2 * (plain.double() - right).norm() + 2 * torch.finfo(DTYPE).eps * right.norm()
    error = (y.double() - right).norm()
    finite = all(g.isfinite().all() for g in gradients_of(y, [x, *trained(layer)], torch.ones_like(y)))
    return "" if error <= bound and finite else f"y is off by {float(error):.2g}, the bound is {float(bound):.2g}"


def compiled(layer: ac.AdaptedLinear) -> Callable[[Tensor], Tensor]:
    """The equation as it is written, by torch.compile."""
    composed = layer.stack(True)
    leaves = dict(zip(composed.arguments[1:], layer.tensors(), strict=True))

    def call(x: Tensor) -> Tensor:
        return Evaluator({composed.arguments[0]: x, **leaves}, torch.float32, rows=len(x))(composed.output).to(x.dtype)

    return torch.compile(call) if GPU else call


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """The same inside a CUDA graph; on a CPU as it is."""
    if not GPU:
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def wait() -> None:
    """Until the device has done what it was told."""
    if GPU:
        torch.cuda.synchronize()


def microseconds(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Wall time of each call; medians over rounds in which all take their turn."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            for _ in range(REPEAT):
                call()
            wait()
            found[name].append((time.perf_counter() - start) / REPEAT * 1e6)
    return {name: median(times) for name, times in found.items()}


def peak(call: Callable[[], object]) -> float:
    """MiB of device memory that a step takes beside what is there."""
    if not GPU:
        return 0.0
    call()
    wait()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    wait()
    return float(torch.cuda.max_memory_allocated() - before) / 2**20


def layers_of(one: Row, size: Size, missing: dict[str, str]) -> dict[str, Any]:
    """Ours and the peers', on the device."""
    ours = ac.AdaptedLinear(size.base, one.adapter(size.n, size.k)).to(DEVICE)
    move(ours, 0)
    found: dict[str, Any] = {"adaptc": ours}
    for peer, made in (("peft", of_peft), ("lycoris", of_lycoris)):
        try:
            layer = made(one, size.base)
        except Exception as error:  # of another's code: the row says so
            missing[peer] = f"{type(error).__name__}: {error}"
            continue
        if layer is not None:
            found[peer] = layer.to(DEVICE)
        else:
            missing[peer] = "has no such method"
    return found


def tried(calls: Mapping[str, Callable[[], object]], missing: dict[str, str]) -> dict[str, Callable[[], object]]:
    """The calls that work; what does not is said."""
    found = {}
    for name, call in calls.items():
        try:
            call()
            wait()
        except Exception as error:
            if name in ("frozen", "adaptc"):
                raise
            missing[name] = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        found[name] = call
    return found


def measure(name: str, size: Size) -> dict[str, Any]:
    """One row: training in wall time and inside a graph, decoding inside a graph, and memory."""
    missing: dict[str, str] = {}
    layers = layers_of(ROWS[name], size, missing)
    wrong = off(layers["adaptc"], size)
    if wrong:
        return {"row": name, "size": str(size), "red": wrong}
    x, gy = tokens(size.m, size.k), tokens(size.m, size.n)
    steps = {"frozen": training_step(size.base, x, gy, [])}
    steps |= {peer: training_step(layer.train(), x, gy, trained(layer)) for peer, layer in layers.items()}
    steps["compiled"] = training_step(compiled(layers["adaptc"]), x, gy, trained(layers["adaptc"]))
    steps = tried(steps, missing)
    wall = microseconds(steps)
    graphs = microseconds({peer: captured(steps[peer]) for peer in ("frozen", "adaptc")})
    decode = {}
    for m in DECODED:
        few = tokens(m, size.k)
        calls = {"frozen": captured(decoding_step(size.base, few))}
        calls["adaptc"] = captured(decoding_step(layers["adaptc"].eval(), few))
        times = microseconds(calls)
        decode[m] = round(times["adaptc"] / times["frozen"], 3)
    return {
        "row": name,
        "size": str(size),
        "frozen us": round(wall["frozen"], 1),
        **{peer: round(wall[peer] / wall["frozen"], 3) for peer in PEERS if peer in wall},
        "in a graph": round(graphs["adaptc"] / graphs["frozen"], 3),
        "decode": decode,
        "peak MiB": {peer: round(peak(step), 1) for peer, step in steps.items()},
        "goal": GOALS.get(name, GOAL),
        "missing": missing,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Ratios to the frozen linear; + where the goal is reached."""
    made = Table("row", "size", *PEERS, "in a graph", "goal", *(f"decode {m}" for m in DECODED), "peak MiB", box=None)
    for r in rows:
        if "red" in r:
            made.add_row(r["row"], r["size"], f"RED: {r['red']}")
            continue
        peers = (f"{r[p]:.2f}" if p in r else "-" for p in PEERS)
        reached = "+" if r["adaptc"] <= r["goal"] else ""
        decoded = (f"{r['decode'][m]:.2f}" for m in DECODED)
        memory = " / ".join(f"{r['peak MiB'][p]:.0f}" for p in ("adaptc", "peft") if p in r["peak MiB"])
        made.add_row(r["row"], r["size"], *peers, f"{r['in a graph']:.2f}", f"{r['goal']}{reached}", *decoded, memory)
    return made


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same as text."""
    where = ", ".join(f"{name} {value}" for name, value in machine().items())
    lines = [
        "# Training steps on a GPU over the frozen linear's",
        "",
        f"`python -m bench gpu`; {where}, {device()}",
        "",
    ]
    lines += [f"| row | size | {' | '.join(PEERS)} | in a graph | goal |", f"|---|---|{'---:|' * (len(PEERS) + 2)}"]
    for r in rows:
        if "red" not in r:
            peers = " | ".join(f"{r[p]:.2f}" if p in r else "-" for p in PEERS)
            lines.append(f"| {r['row']} | {r['size']} | {peers} | {r['in a graph']:.2f} | {r['goal']} |")
    return "\n".join([*lines, ""])


def device() -> str:
    """What it ran on."""
    return torch.cuda.get_device_name() if GPU else "rehearsal in Triton's interpreter: times mean nothing"


@click.command()
@click.option("--row", "names", multiple=True, type=click.Choice(list(ROWS)), help="Only these rows.")
@click.option("--out", default=None, type=click.Path(file_okay=False), help="Where to write; bench/results.")
def main(names: tuple[str, ...], out: str | None) -> None:
    """Training and decoding steps on a GPU beside the frozen linear, PEFT, LyCORIS and torch.compile."""
    if not GPU and os.environ.get("TRITON_INTERPRET") != "1":
        raise click.ClickException("there is no GPU: set TRITON_INTERPRET=1 to rehearse at tiny sizes")
    if not GPU:
        program.generates = lambda _: generated.ALL  # type: ignore[assignment]
    if out:
        measuring.RESULTS = Path(out)
    elif not GPU:
        raise click.UsageError("a rehearsal is no result: say --out")
    rows = []
    for size in (Size(*numbers) for numbers in SIZES):
        for name in names or ROWS:
            rows.append(measure(name, size))
            print("  ".join(str(v) for v in rows[-1].values()), flush=True)
    write("gpu", device=device(), rows=rows)
    (measuring.RESULTS / "gpu.md").write_text(markdown(rows))
    Console(width=180).print(table(rows))
    if any("red" in r for r in rows):
        raise SystemExit(1)
