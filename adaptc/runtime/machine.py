"""This machine: what it is called, where its calibration lies, and which description the planner is to use for it."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import platformdirs
import torch

from adaptc.env import CALIBRATED, options

SHIPPED = {"cpu": "cpu", "cuda": "h200"}
"""The shipped description of each kind of device."""


def cpu_model() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def machine() -> dict[str, Any]:
    """What a calibration is of: processor, number of threads, version of torch, GPU (None: none)."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu_model(), "threads": torch.get_num_threads(), "torch": torch.__version__, "gpu": gpu}


def calibration_file() -> Path:
    """Where the calibration of this machine lies, with this number of threads and this torch: in the user's cache."""
    m = machine()
    told = [m["cpu"], f"{m['threads']} threads", f"torch {m['torch']}", *([m["gpu"]] if m["gpu"] else [])]
    name = "-".join(re.sub(r"[^a-z0-9.+]+", "-", str(t).lower()).strip("-") for t in told)
    return platformdirs.user_cache_path("adaptc") / "calibration" / f"{name}.json"


def described(device: str) -> str:
    """The name by which `adaptc.plan.device.device` finds a description.

    "calibrated" is this machine's CPU as measured. With ADAPTC_DEVICE=calibrated so are "cpu" and "cuda"; without it
    they are the shipped descriptions. Other names, and paths of calibration files, stay as they are.
    """
    if device == CALIBRATED:
        return f"{calibration_file()}#cpu"
    if device not in SHIPPED:
        return device
    return f"{calibration_file()}#{device}" if options().device == CALIBRATED else SHIPPED[device]
