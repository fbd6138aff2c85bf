"""What every benchmark shares: the machine, interleaved timing, results on disk."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from adaptc.runtime.machine import cpu_model
from adaptc.timing import interleaved

__all__ = ["RESULTS", "commit", "interleaved", "machine", "settle_memory", "write"]

SETTLED = 32 * 2**20 - 4096  # bytes: the C library never counts more
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Where and with what this is measured."""
    return {
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
    }


def settle_memory() -> None:
    """What every training process has done: allocate and free a large tensor. The C library keeps freed memory up to
    twice the largest block that was ever freed; else what a row takes would depend on the rows before it."""
    torch.empty(SETTLED, dtype=torch.uint8).zero_()


def commit() -> str:
    """The checked-out commit; "-dirty" where anything but results differs from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=RESULTS.parents[1])
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":!bench/results")
    return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")


def write(name: str, **facts: Any) -> None:
    """bench/results/<name>.json with the machine."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine(), **facts}, indent=1) + "\n")
