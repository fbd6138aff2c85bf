"""What every benchmark shares: the machine, interleaved timing, results on disk."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from adaptc.runtime.machine import cpu_model

RESULTS = Path(__file__).parent / "results"
WARM = 0.1  # of the rounds are not counted


def machine() -> dict[str, Any]:
    """Where and with what this is measured."""
    return {
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
    }


def commit() -> str:
    """The checked-out commit; "-dirty" where anything but results differs from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=RESULTS.parents[1])
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":!bench/results")
    return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, repeat: int = 1, clock: Callable[[], int] | None = None
) -> dict[str, float]:
    """Median microseconds of a call, each called in turn so that a busy machine slows all alike. clock: nanoseconds;
    process time by default."""
    read = clock or time.process_time_ns
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = read()
            for _ in range(repeat):
                call()
            found[name].append((read() - start) / repeat / 1e3)
    return {name: statistics.median(times[int(WARM * rounds) :]) for name, times in found.items()}


def write(name: str, **facts: Any) -> None:
    """bench/results/<name>.json with the machine."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine(), **facts}, indent=1) + "\n")
