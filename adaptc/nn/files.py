"""Adapter files: a folder with `adapter.safetensors` and `adapter.json`. Loading one never runs code.

The JSON names each adapter's method, module and hyper-parameters, each layer's sizes and the SHA-256 of its equation's
text form (`ir/printer.py: listing`), and holds the text itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adaptc.errors import LoadError
from adaptc.initial import Init
from adaptc.ir.printer import listing
from adaptc.method import METHODS, Adapter, Equation
from adaptc.nn.inject import adapted_layers, commit
from adaptc.nn.leaves import Leaves
from adaptc.nn.linear import AdaptedLinear, require_linear
from adaptc.runtime.attach import all_leaves, draw, leaf_dtype

FORMAT = 1
TENSORS, DESCRIPTION = "adapter.safetensors", "adapter.json"


def text_form(equation: Equation) -> str:
    """What is hashed: the traced expression, then the leaves that are drawn again instead of stored."""
    drawn = [f"{s.name} = {s.init} seed {s.seed} shared {s.shared}" for s in equation.leaves if not s.store]
    return "\n".join([listing(equation.written), *drawn])


def equation_hash(equation: Equation) -> str:
    """SHA-256 of the text form."""
    return hashlib.sha256(text_form(equation).encode()).hexdigest()


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write every adapter of the model to a folder. Both files are complete before either replaces an old one."""
    tensors: dict[str, Tensor] = {}
    adapters: dict[str, Any] = {}
    layers: dict[str, Any] = {}
    equations: dict[str, str] = {}
    wholes: dict[str, dict[str, list[int]]] = {}
    for where, layer in adapted_layers(model):
        entry: dict[str, Any] = {
            "n": layer.out_features,
            "k": layer.in_features,
            "bias": layer.bias is not None,
        }
        entry |= {"active": list(layer.active), "equations": {}}
        for name in layer.adapters:
            leaves = layer._leaves(name)
            adapter, equation = leaves.adapter, leaves.equation
            adapters[name] = {
                "method": adapter.name,
                "module": adapter.method.module,
                "hyper": dict(adapter.hyper),
            }
            digest = equation_hash(equation)
            equations[digest] = text_form(equation)
            entry["equations"][name] = digest
            shared = {s.name: s.shared for s in equation.leaves if s.shared}
            for s in equation.leaves:
                if s.shared:
                    wholes.setdefault(name, {})[s.shared] = list(leaves[s.name].shape)
            unstored = {s.name for s in equation.leaves if not s.store}
            for leaf, value in leaves.values().items():
                if leaf not in unstored:
                    tensors[_key(where, name, leaf, shared.get(leaf))] = value.detach().contiguous()
        layers[where] = entry
    if not layers:
        raise LoadError("the model has no adapter to save")
    description = {
        "format": FORMAT,
        "adapters": adapters,
        "shared": wholes,
        "layers": layers,
        "equations": equations,
    }
    _write(Path(path), tensors, description)


def _key(where: str, adapter: str, leaf: str, shared: str | None) -> str:
    return f"shared.{adapter}.{shared}" if shared else f"{where}.adapters.{adapter}.{leaf}"


def _write(folder: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f".{name}.part" for name in (TENSORS, DESCRIPTION)]
    save_file({k: v.clone() for k, v in tensors.items()}, parts[0])
    parts[1].write_text(json.dumps(description, indent=1, sort_keys=True))
    for part, name in zip(parts, (TENSORS, DESCRIPTION), strict=True):
        part.replace(folder / name)


def load(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Read adapters from a folder onto a model, plain or with these adapters already on it; freeze the rest.

    Nothing is computed again from W. Raises: LoadError naming what does not fit: the files, a method that is not
    imported, a changed equation (both are printed), a layer, a size, a tensor. The model is then as it was.
    """
    description, tensors = _read(Path(path))
    adapters = {name: _adapter(name, entry) for name, entry in description["adapters"].items()}
    modules = dict(model.named_modules())
    drawn: dict[str, Tensor] = {}
    parameters: dict[str, nn.Parameter] = {}
    unused = set(tensors)
    plan: dict[str, tuple[nn.Module, list[tuple[str, Leaves]]]] = {}
    for where, entry in description["layers"].items():
        module = _layer(modules, where, entry)
        additions = []
        for name, digest in entry["equations"].items():
            equation = adapters[name].trace(entry["n"], entry["k"])
            _same_equation(equation, digest, description["equations"].get(digest, "<not in the file>"))
            values = _values(
                where,
                name,
                equation,
                module,
                tensors,
                unused,
                description["shared"].get(name, {}),
                drawn,
            )
            for s in equation.leaves:
                if s.shared and s.trainable:
                    values[s.name] = parameters.setdefault(f"{name}.{s.shared}", nn.Parameter(values[s.name]))
            additions.append((name, Leaves(adapters[name], equation, values)))
        order = list(entry["active"])
        additions.sort(key=lambda a: order.index(a[0]) if a[0] in order else len(order))
        plan[where] = (module, additions)
    if unused:
        raise LoadError(f"the file holds '{sorted(unused)[0]}', which no layer of the description uses")
    _install(model, plan, {w: tuple(e["active"]) for w, e in description["layers"].items()})
    return model


def _install(model: nn.Module, plan: dict[str, Any], active: dict[str, tuple[str, ...]]) -> None:
    fresh: dict[str, tuple[nn.Module, list[tuple[str, Leaves]]]] = {}
    for where, (module, additions) in plan.items():
        if isinstance(module, AdaptedLinear):
            known = [a for a in additions if a[0] in module.adapters]
            for name, leaves in known:
                module.adapters[name] = leaves
            fresh[where] = (module, [a for a in additions if a not in known])
        else:
            fresh[where] = (module, additions)
    commit(model, fresh)
    for where, names in active.items():
        layer = model.get_submodule(where)
        assert isinstance(layer, AdaptedLinear)
        layer.active = names


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        tensors = load_file(folder / TENSORS)
    except FileNotFoundError as error:
        raise LoadError(
            f"'{folder}' is no adapter folder: it lacks {Path(error.filename or '').name or TENSORS}"
        ) from error
    except (json.JSONDecodeError, SafetensorError, UnicodeDecodeError) as error:
        raise LoadError(f"'{folder}' is damaged: {error}") from error
    missing = [k for k in ("format", "adapters", "layers", "equations", "shared") if k not in description]
    if missing:
        raise LoadError(f"'{folder / DESCRIPTION}' has no '{missing[0]}'")
    if description["format"] != FORMAT:
        raise LoadError(f"the file has format {description['format']}, this release reads {FORMAT}")
    return description, tensors


def _adapter(name: str, entry: dict[str, Any]) -> Adapter:
    known = METHODS.get(entry["method"], [])
    method = next((m for m in known if m.module == entry["module"]), known[0] if len(known) == 1 else None)
    if method is None:
        raise LoadError(
            f"adapter '{name}' uses the method '{entry['method']}' of the module '{entry['module']}', "
            f"which is not loaded: import {entry['module']} first"
        )
    return method(**entry["hyper"])


def _same_equation(equation: Equation, digest: str, text: str) -> None:
    if equation_hash(equation) != digest:
        raise LoadError(
            f"the equation of '{equation.adapter.name}' has changed since the file was written [{equation.where}]\n"
            f"in the file:\n{text}\nnow:\n{text_form(equation)}"
        )


def _layer(modules: dict[str, nn.Module], where: str, entry: dict[str, Any]) -> nn.Module:
    module = modules.get(where)
    if module is None:
        raise LoadError(f"the model has no layer '{where}'")
    if not isinstance(module, AdaptedLinear):
        require_linear(module, f"'{where}'")
    weight = module.weight
    assert isinstance(weight, Tensor)
    have, want = tuple(weight.shape), (entry["n"], entry["k"])
    if have != want:
        raise LoadError(f"'{where}' is {have} in the model and {want} in the file")
    if isinstance(module, AdaptedLinear):
        if module.merged:
            raise LoadError(f"'{where}' is merged: unmerge it before loading")
        for name in entry["equations"]:
            if name in module.adapters and equation_hash(module._leaves(name).equation) != entry["equations"][name]:
                raise LoadError(f"'{where}' has another adapter named '{name}': {module._leaves(name).adapter}")
    return module


def _values(
    where: str,
    name: str,
    equation: Equation,
    module: nn.Module,
    tensors: dict[str, Tensor],
    unused: set[str],
    wholes: dict[str, list[int]],
    drawn: dict[str, Tensor],
) -> dict[str, Tensor]:
    weight = module.weight
    assert isinstance(weight, Tensor)
    specs = {s.name: s for s in equation.leaves}
    values: dict[str, Tensor] = _redraw(name, equation, weight, wholes, drawn)
    for leaf in all_leaves(equation):
        if leaf.name in values:
            continue
        spec = specs.get(leaf.name)
        key = _key(where, name, leaf.name, spec.shared if spec else None)
        if key not in tensors:
            raise LoadError(f"the file lacks '{key}'")
        size = wholes.get(spec.shared) if spec and spec.shared else None
        want = tuple(size) if size else tuple(int(d) for d in leaf.dims)
        if tuple(tensors[key].shape) != want:
            raise LoadError(f"'{key}' is {tuple(tensors[key].shape)} in the file, the equation needs {want}")
        values[leaf.name] = tensors[key].to(weight.device)
        unused.discard(key)
    return values


def _redraw(
    name: str,
    equation: Equation,
    weight: Tensor,
    wholes: dict[str, list[int]],
    drawn: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Leaves that are not stored, drawn again; the others of the same seed are drawn too, to keep the order."""
    values: dict[str, Tensor] = {}
    generators: dict[int, torch.Generator] = {}
    for spec in equation.leaves:
        if spec.seed is None or not isinstance(spec.init, Init):
            continue
        key = f"{name}.{spec.shared}"
        if spec.shared and key in drawn:
            value = drawn[key]
        else:
            size = tuple(wholes[spec.shared]) if spec.shared else tuple(int(d) for d in spec.leaf.dims)
            generator = generators.setdefault(spec.seed, torch.Generator().manual_seed(spec.seed))
            value = draw(spec.init, size, generator, spec).to(weight.device, leaf_dtype(spec, weight.dtype))
            if spec.shared:
                drawn[key] = value
        if not spec.store:
            values[spec.name] = value
    return values
