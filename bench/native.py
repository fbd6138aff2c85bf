"""Native kernels against torch, one thread: blocks along the diagonal, forward and both gradients, and dropout masks.

`python -m bench.native` prints a table of microseconds and writes bench/results/native_cpu.json. Rounds are
interleaved, times are medians of process time, and nothing is timed before it was compared with float64.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptc import _native
from adaptc.runtime import native

TOKENS, WIDTH, ROUNDS = 512, 768, 60
RESULTS = Path(__file__).parent / "results" / "native_cpu.json"
Pair = tuple[Callable[[], Tensor], Callable[[], Tensor]]


def products(b: int, dtype: torch.dtype) -> dict[str, tuple[Pair, Tensor]]:
    """Each product: ours, torch's, and its value in float64."""
    g = WIDTH // b
    x, gy = torch.randn(TOKENS, g, b).to(dtype), torch.randn(TOKENS, g, b).to(dtype)
    R = torch.randn(g, b, b).to(dtype)
    wide = x.double(), gy.double(), R.double()
    return {
        "y": (
            (lambda: native.blocks_apply(x, R), lambda: torch.einsum("mgi,gij->mgj", x, R)),
            torch.einsum("mgi,gij->mgj", wide[0], wide[2]),
        ),
        "gx": (
            (lambda: native.blocks_apply(gy, R, True), lambda: torch.einsum("mgj,gij->mgi", gy, R)),
            torch.einsum("mgj,gij->mgi", wide[1], wide[2]),
        ),
        "gR": (
            (lambda: native.blocks_gradient(x, gy, dtype), lambda: torch.einsum("mgi,mgj->gij", x, gy)),
            torch.einsum("mgi,mgj->gij", wide[0], wide[1]),
        ),
    }


def verify(pair: Pair, exact: Tensor) -> None:
    """Our error is at most twice torch's, and a rounding."""
    ours, theirs = ((f().double() - exact).norm() / exact.norm() for f in pair)
    eps = torch.finfo(pair[0]().dtype).eps
    if not ours <= 2 * theirs + eps:
        raise SystemExit(f"wrong numbers: error {ours:.1e}, torch's {theirs:.1e}")


def measure(pair: Pair) -> dict[str, float]:
    """Medians in microseconds, rounds interleaved."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for f, found in zip(pair, times, strict=True):
            start = time.process_time_ns()
            f()
            found.append((time.process_time_ns() - start) / 1e3)
    ours, theirs = (statistics.median(t[ROUNDS // 10 :]) for t in times)
    return {"native_us": round(ours, 1), "aten_us": round(theirs, 1), "ratio": round(ours / theirs, 3)}


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return {
        "cpu": cpu,
        "instructions": _native.levels()[-1],
        "threads": 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
    }


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    print(f"{'what':6} {'b':>3} {'dtype':9} {'native us':>10} {'aten us':>10} {'ratio':>6}")

    def add(what: str, b: int, dtype: torch.dtype, pair: Pair) -> None:
        found = measure(pair)
        rows.append({"what": what, "b": b, "dtype": str(dtype).removeprefix("torch."), **found})
        r = rows[-1]
        print(f"{what:6} {b:3} {r['dtype']:9} {r['native_us']:10} {r['aten_us']:10} {r['ratio']:6.2f}")

    for dtype in (torch.float32, torch.bfloat16):
        for b in (2, 4, 8, 16, 32, 64, 128):
            for what, (pair, exact) in products(b, dtype).items():
                verify(pair, exact)
                add(what, b, dtype, pair)
        add("mask", 0, dtype, masks(dtype))
    RESULTS.parent.mkdir(exist_ok=True)
    sizes = {"tokens": TOKENS, "width": WIDTH, "rounds": ROUNDS}
    RESULTS.write_text(json.dumps({"machine": machine(), "sizes": sizes, "rows": rows}, indent=1) + "\n")


def masks(dtype: torch.dtype) -> Pair:
    """A dropout mask as large as x."""
    seed, shape = torch.tensor(1), (TOKENS, WIDTH)
    return (
        lambda: native.bernoulli(seed, 0, 0.1, shape, dtype),
        lambda: torch.empty(shape, dtype=dtype).bernoulli_(0.9),
    )


if __name__ == "__main__":
    main()
