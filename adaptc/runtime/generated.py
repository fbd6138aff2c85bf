"""Generated files: which programs have them, and how they are loaded.

A file is written once to the cache folder, under the digest of its text, and imported from there: Triton reads the
source of a kernel from its file.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import platformdirs
import torch

from adaptc.codegen.source import Source
from adaptc.env import TRITON, options

ALL, GAIN = "all", "gain"
"""Every step that can be is a generated kernel; or those that are predicted to gain."""


@functools.cache
def generates(device: str) -> str:
    """ALL, GAIN, or "" for a kind of device on which nothing is generated, as torch names it."""
    if options().backend == TRITON and device in ("cpu", "cuda"):
        return ALL
    return GAIN if device == "cuda" and importlib.util.find_spec("triton") else ""


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A generated function, on the device of its first tensor: Triton starts kernels on the current one."""

    def run(tables: tuple[torch.Tensor, ...], first: torch.Tensor, *rest: torch.Tensor) -> Any:
        if first.is_cuda and first.device.index != torch.cuda.current_device():
            with torch.cuda.device(first.device):
                return function(tables, first, *rest)
        return function(tables, first, *rest)

    return run


def folder() -> Path:
    """Where generated files are kept."""
    return Path(platformdirs.user_cache_dir("adaptc")) / "generated"


def load_file(source: Source) -> ModuleType:
    """The module of a generated file."""
    path = folder() / f"{source.name}_{source.digest}.py"
    if not path.exists() or path.read_text(encoding="utf-8") != source.text:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(source.text)
        os.replace(made, path)  # whole, or not at all
    spec = importlib.util.spec_from_file_location(f"adaptc_generated_{source.digest}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
