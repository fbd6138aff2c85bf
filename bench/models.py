"""Many layers: time to inject, to take the first step, to save and to load, for 30 blocks with 120 adapted linears.

`python -m bench models` prints seconds and writes bench/results/models_cpu.json. Each method has a process of its own,
so that nothing is compiled before. torch is imported before the clock starts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch
from torch import Tensor, nn

from bench.measuring import write

BLOCKS, WIDTH, INNER, TOKENS = 30, 256, 512, 64
METHODS = ("lora", "dora", "hra", "boft", "vera", "fourierft")


class Block(nn.Module):
    """Two attention-like and two feed-forward linears."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.q(x)) * self.v(x)
        return x + self.down(torch.relu(self.up(x)))


def measure(method: str) -> dict[str, float]:
    """Seconds of each part, in this process."""
    import adaptc as ac
    from adaptc.methods import catalogue

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, fresh = (nn.Sequential(*(Block() for _ in range(BLOCKS))) for _ in range(2))
    x, seconds = torch.randn(TOKENS, WIDTH), {}

    def timed(name: str, start: float) -> None:
        seconds[name] = round(time.perf_counter() - start, 3)

    start = time.perf_counter()
    ac.inject(model, catalogue()[method](), "all-linear")
    timed("inject", start)
    assert len(ac.summary(model).rows) == 4 * BLOCKS
    for step in ("first step", "second step"):
        start = time.perf_counter()
        model(x).square().mean().backward()
        timed(step, start)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        ac.save(model, folder)
        timed("save", start)
        start = time.perf_counter()
        ac.load(fresh, folder)
        timed("load", start)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    return seconds


@click.command()
@click.argument("method", required=False)
def main(method: str | None) -> None:
    """Time to inject, to step, to save and to load 120 layers: one process a METHOD, or this one."""
    if method:
        print(json.dumps(measure(method)))
        return
    rows = {}
    for method in METHODS:
        command = [sys.executable, "-m", "bench.models", method]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        rows[method] = json.loads(done.stdout)
        print(f"{method:12}" + "  ".join(f"{name} {s:6.2f}" for name, s in rows[method].items()), flush=True)
    sizes = {"blocks": BLOCKS, "linears": 4 * BLOCKS, "width": WIDTH, "inner": INNER, "tokens": TOKENS}
    write("models_cpu", sizes=sizes, seconds=rows)


if __name__ == "__main__":
    main()
