"""Measure the machine: the rates by which the planner ranks plans, written as one JSON file.

What is measured is used only where it is asked for (`adaptc.plan.device` says why).
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor

from adaptc.errors import UnsupportedError
from adaptc.plan.device import BYTES, FORMAT, KINDS, NARROW, PRODUCT_DTYPES
from adaptc.runtime.machine import calibration_file, machine

EXTENTS = (1, 8, 32, 128)  # of skinny products
FLOPS_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}  # what `flops` stands for, as in the shipped descriptions
SAMPLE = 1e-3  # seconds a sample takes at least: calls are repeated to fill it
RUNS = 3  # samples at least
PARTS = 12  # measurements that share the time
SMALLEST, LARGEST = 128, 8192  # sides of square products
STREAM = {"cpu": 1 << 24, "cuda": 1 << 26}  # entries copied: more than caches hold
RESIDENT = {"cpu": 1 << 16, "cuda": 1 << 26}  # entries of an elementwise pass; on a CPU within its cache
OPERATIONS = 2  # that `ir.cost` counts in one exp


@dataclass(frozen=True)
class Calibration:
    """What was measured, by kind of device, as the planner reads it; the file it is in, if it was written."""

    document: Mapping[str, Any]
    path: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON. Rates are operations or bytes per second, times seconds."""
        return {**self.document, "path": None if self.path is None else str(self.path)}

    def __rich__(self) -> Group:
        m = self.document["machine"]
        on = f", {m['gpu']}" if m["gpu"] else ""
        head = f"{m['cpu']}, {m['threads']} threads{on}, torch {m['torch']}"
        tables = [_shown(kind, rates) for kind, rates in self.document["devices"].items()]
        return Group(head, *tables)


def calibrate(seconds: float = 20.0, path: Path | None = None, *, write: bool = True) -> Calibration:
    """Measure this machine's CPU, and its GPU if there is one, in about `seconds` seconds each.

    Sizes follow the machine and the time there is: the less time, the smaller the products. path: of the file to write;
    by default the one in the user's cache folder that is named by processor, threads, torch and GPU. Plans that this
    process has made stay as they are. Raises UnsupportedError where the file cannot be written.
    """
    if not 0 < seconds <= 3600:
        raise UnsupportedError(f"cannot measure for {seconds:g} seconds: give a number above 0, at most 3600")
    target = _folder(path or calibration_file()) if write else None
    kinds = [k for k in KINDS if k == "cpu" or torch.cuda.is_available()]
    devices = {kind: _Bench(kind, seconds / PARTS).device() for kind in kinds}
    document = {"format": FORMAT, "machine": machine(), "seconds": seconds, "devices": devices}
    return Calibration(document, _write(document, target) if target else None)


def _folder(path: Path) -> Path:
    """The path, its folder made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnsupportedError(f"cannot write the calibration to {path}: {error}") from error
    return path


def _write(document: Mapping[str, Any], path: Path) -> Path:
    """The whole file, or none of it."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(json.dumps(document, indent=1) + "\n")
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UnsupportedError(f"cannot write the calibration to {path}: {error}") from error
    return path


class _Bench:
    """Measurements on one kind of device, each in a part of the time."""

    def __init__(self, kind: str, part: float) -> None:
        self.kind, self.part = kind, part

    @torch.no_grad()
    def device(self) -> dict[str, Any]:
        """The rates that `adaptc.plan.device` reads."""
        squares = {dtype: self.square(dtype) for dtype in PRODUCT_DTYPES}
        gemm = {dtype: rate for dtype, (_, rate) in squares.items()}
        side, full = squares[FLOPS_DTYPE[self.kind]]
        return {
            "flops": full,
            "bandwidth": self.bandwidth(),
            "overhead": self.overhead(),
            "gemm": gemm,
            "skinny": self.skinny(side, full),
            "columns": self.columns(side),
            "elementwise": self.elementwise(),
            "sides": {dtype: side for dtype, (side, _) in squares.items()},
        }

    def square(self, dtype: str) -> tuple[int, float]:
        """The side of the largest square product that the time allows, and its operations per second."""
        side = SMALLEST
        taken = self.median(self.product(side, side, side, dtype), 0.0)
        while 8 * taken * (RUNS + 1) < self.part and side < LARGEST:
            side *= 2
            taken = self.median(self.product(side, side, side, dtype), 0.0)
        return side, 2 * side**3 / self.median(self.product(side, side, side, dtype), self.part / 2)

    def skinny(self, side: int, full: float) -> list[tuple[int, float]]:
        """For small extents, what part of the full rate products reach that sum over so few, or give so few rows.

        Never less, and never less time, for more.
        """
        found: list[tuple[int, float]] = []
        for extent in (e for e in EXTENTS if e < side):
            dtype, share = FLOPS_DTYPE[self.kind], self.part / len(EXTENTS)
            times = [
                self.median(self.product(m, n, k, dtype), share)
                for m, n, k in ((extent, side, side), (side, side, extent))
            ]
            rate = 2 * 2 * side * side * extent / sum(times)
            before, least = found[-1] if found else (extent, rate / full)
            found.append((extent, min(1.0, max(rate / full, least), least * extent / before)))
        return found

    def columns(self, side: int) -> float:
        """How many times longer a product with few columns takes than its transpose, if the left operand lies
        transposed in memory. (If not, either may be faster.)"""
        dtype = FLOPS_DTYPE[self.kind]
        a, b = self.tensor(side, side, dtype=dtype).t(), self.tensor(side, NARROW // 2, dtype=dtype)
        written = self.median(lambda: torch.mm(a, b), self.part / 2)
        turned = self.median(lambda: torch.mm(b.t(), a.t()), self.part / 2)
        return max(1.0, written / turned)

    def bandwidth(self) -> float:
        """Bytes read and written per second by a copy of what no cache holds."""
        count = STREAM[self.kind] if self.part >= 0.5 else STREAM[self.kind] >> 4
        source, target = self.tensor(count), self.tensor(count)
        return 2 * BYTES["float32"] * count / self.median(lambda: target.copy_(source), self.part)

    def elementwise(self) -> float:
        """Operations per second of exp."""
        count = RESIDENT[self.kind]
        source, target = self.tensor(count), self.tensor(count)
        return OPERATIONS * count / self.median(lambda: torch.exp(source, out=target), self.part)

    def overhead(self) -> float:
        """Seconds of a call that has nothing to do."""
        a, b = self.tensor(1), self.tensor(1)
        return self.median(lambda: torch.add(a, b), self.part)

    def tensor(self, *sizes: int, dtype: str = "float32") -> Tensor:
        """Small numbers: none overflows, none is subnormal."""
        return torch.rand(sizes, device=self.kind).to(getattr(torch, dtype))

    def product(self, m: int, n: int, k: int, dtype: str) -> Callable[[], object]:
        """A call of (m, k) @ (k, n), the second transposed in memory as a layer's weight is."""
        a, b = self.tensor(m, k, dtype=dtype), self.tensor(n, k, dtype=dtype).t()
        return lambda: torch.mm(a, b)

    def median(self, call: Callable[[], object], seconds: float) -> float:
        """Median seconds of a call, over RUNS samples or as many as fit into the time."""
        call()
        repeat = 1
        while (first := self.sample(call, repeat)) * repeat < SAMPLE:
            repeat *= 2 if first * repeat * 8 > SAMPLE else 8
        found, start = [first], time.perf_counter()
        while len(found) < RUNS or time.perf_counter() - start < seconds:
            found.append(self.sample(call, repeat))
        return statistics.median(found)

    def sample(self, call: Callable[[], object], repeat: int) -> float:
        """Seconds of one call, over `repeat` of them."""
        self.wait()
        start = time.perf_counter()
        for _ in range(repeat):
            call()
        self.wait()
        return max(time.perf_counter() - start, 1e-9) / repeat

    def wait(self) -> None:
        """Until the device has done what was asked of it."""
        if self.kind == "cuda":
            torch.cuda.synchronize()


def _shown(kind: str, rates: Mapping[str, Any]) -> Table:
    table = Table(title=f"\n{kind}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("measured", justify="right")
    for dtype, rate in rates["gemm"].items():
        side = rates["sides"][dtype]
        table.add_row(f"products of {dtype}, {side} x {side} x {side}", f"{rate / 1e9:,.4g} GFLOP/s")
    for extent, factor in rates["skinny"]:
        table.add_row(f"  smallest extent {extent}: factor", f"{factor:.3g}")
    table.add_row(
        f"  few columns as written: times longer than turned ({NARROW // 2} columns)", f"{rates['columns']:.3g}"
    )
    table.add_row("copies", f"{rates['bandwidth'] / 1e9:,.3g} GB/s")
    table.add_row("elementwise operations", f"{rates['elementwise'] / 1e9:,.3g} GFLOP/s")
    table.add_row("overhead of a call", f"{rates['overhead'] * 1e6:.3g} us")
    return table
