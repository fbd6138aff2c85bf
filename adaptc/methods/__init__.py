"""The catalogue: one equation per method, nothing else. A new method in a new file here is found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from adaptc.method import METHODS, Method

for _module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")


def catalogue() -> dict[str, Method]:
    """The methods of this package by name."""
    found = [m for methods in METHODS.values() for m in methods if (m.module or "").startswith(__name__ + ".")]
    return {m.name: m for m in sorted(found, key=lambda m: m.name)}


globals().update(catalogue())
__all__ = ["catalogue", *catalogue()]  # noqa: PLE0604 - names of the methods


def __getattr__(name: str) -> Method:
    raise AttributeError(f"no method '{name}' in the catalogue: {', '.join(catalogue())}")
