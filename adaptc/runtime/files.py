"""Generated files: written once to the cache folder, under the digest of their text, and imported from there.

Triton reads the source of a kernel from its file, so that there must be one.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from types import ModuleType

import platformdirs

from adaptc.codegen.source import Source


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
