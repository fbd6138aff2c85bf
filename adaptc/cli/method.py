"""METHOD arguments: a name of the catalogue, or FILE.py:method; hyper-parameters as `-s r=16`."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from typing import Any

import click

from adaptc.method import Adapter, Method
from adaptc.methods import catalogue


def find_method(text: str) -> Method:
    """The method that METHOD names. Raises click.UsageError naming what there is."""
    if ":" in text:
        path, _, name = text.rpartition(":")
        module = _load(Path(path))
        found = getattr(module, name, None)
        if not isinstance(found, Method):
            methods = [k for k, v in vars(module).items() if isinstance(v, Method)]
            raise click.UsageError(f"'{path}' has no method '{name}'; methods in it: {', '.join(methods) or 'none'}")
        return found
    known = catalogue()
    if text not in known:
        raise click.UsageError(f"no method '{text}': one of {', '.join(known)}, or FILE.py:method")
    return known[text]


def _load(path: Path) -> Any:
    if not path.is_file():
        raise click.UsageError(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(f"adaptc_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise click.UsageError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)  # the user's own file, asked for by the user
    except SyntaxError as error:
        raise click.UsageError(f"{path} is no valid Python: {error}") from error
    return module


def bind(method: Method, settings: tuple[str, ...]) -> Adapter:
    """The method with hyper-parameters such as ("r=16", "ranks=(4, 4)")."""
    hyper = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise click.UsageError(f"write a hyper-parameter as NAME=VALUE, got '{setting}'")
        try:
            hyper[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            hyper[name.strip()] = value
    return method(**hyper)
