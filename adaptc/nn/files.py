"""Adapter files: a folder with `adapter.safetensors` and `adapter.json`. Loading one never runs code.

The JSON names each adapter's method, module and hyper-parameters, each layer's sizes and the SHA-256 of its equation's
text form (`ir/printer.py: listing`), and holds the text itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adaptc.equation import Equation, Layer, LeafSpec
from adaptc.errors import AdaptcError, InjectError, LoadError
from adaptc.initial import Init
from adaptc.ir.prims import Leaf
from adaptc.ir.printer import listing
from adaptc.method import METHODS, Adapter
from adaptc.nn.base import operand, require_linear, sizes
from adaptc.nn.description import FORMAT, AdapterEntry, Description, LayerEntry, parse
from adaptc.nn.inject import Additions, commit
from adaptc.nn.leaves import Leaves
from adaptc.nn.linear import AdaptedLinear, adapted_layers
from adaptc.runtime.attach import all_leaves, default_dtype, draw, leaf_dtype
from adaptc.runtime.stack import stack

Wholes = Mapping[str, tuple[int, ...]]
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
            "bias": layer.stack().has_bias,
        }
        entry |= {"active": list(layer.active), "dropout": dict(layer.dropouts), "equations": {}}
        for name in layer.adapters:
            leaves = layer._leaves(name)
            if leaves.waiting:
                raise LoadError(f"the leaves of '{name}' on '{where}' have no values yet: load the base weights first")
            adapter, equation = leaves.adapter, leaves.equation
            meant = {"method": adapter.name, "module": adapter.method.module, "hyper": dict(adapter.hyper)}
            if adapters.setdefault(name, meant) != meant:
                raise LoadError(f"two adapters are named '{name}': {meant} on '{where}' and {adapters[name]}")
            digest = equation_hash(equation)
            equations[digest] = text_form(equation)
            entry["equations"][name] = digest
            shared = {s.name: s.shared for s in equation.leaves if s.shared}
            for s in equation.leaves:
                size = list(leaves[s.name].shape)
                if s.shared and wholes.setdefault(name, {}).setdefault(s.shared, size) != size:
                    raise LoadError(
                        f"the shared leaf '{s.name}' of '{name}' is {size} on '{where}', elsewhere another size"
                    )
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
    adapters = {name: _adapter(name, entry) for name, entry in description.adapters.items()}
    modules = dict(model.named_modules())
    reader = _Reader(description, tensors)
    plan: Additions = {}
    active: dict[str, tuple[str, ...]] = {}
    for where, entry in description.layers.items():
        module = _layer(modules, where, entry)
        order = [*entry.active, *(a for a in entry.equations if a not in entry.active)]
        plan[where] = (
            module,
            [(a, reader.leaves(where, a, adapters[a], entry, module), entry.dropout.get(a, 0.0)) for a in order],
        )
        active[where] = _composes(where, module, adapters, entry)
    if reader.unused:
        raise LoadError(f"the file holds '{sorted(reader.unused)[0]}', which no layer of the description uses")
    _install(model, plan, active)
    return model


def _composes(where: str, module: nn.Module, known: dict[str, Adapter], entry: LayerEntry) -> tuple[str, ...]:
    """What will be active: the layer's own adapters that the file does not name, then the file's. Checked."""
    own = {a: module._part(a) for a in module.active} if isinstance(module, AdaptedLinear) else {}
    active = (*(a for a in own if a not in entry.equations), *entry.active)
    new = {a: (known[a].trace(entry.n, entry.k, Layer(where)), entry.dropout.get(a, 0.0)) for a in entry.equations}
    try:
        for training in (False, True):
            stack(tuple({**own, **new}[a] for a in active), entry.n, entry.k, entry.bias, training)
    except AdaptcError as error:
        raise LoadError(f"the active adapters {active} of '{where}' do not go together: {error}") from error
    return active


def _install(model: nn.Module, plan: Additions, active: dict[str, tuple[str, ...]]) -> None:
    fresh: Additions = {}
    for where, (module, additions) in plan.items():
        fresh[where] = (module, [])
        for name, leaves, rate in additions:
            if isinstance(module, AdaptedLinear) and name in module.adapters:
                module._leaves(name).take(leaves)
                module.dropouts[name] = rate
            else:
                fresh[where][1].append((name, leaves, rate))
    commit(model, fresh, active)


def _read(folder: Path) -> tuple[Description, dict[str, Tensor]]:
    try:
        raw = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
    except OSError as error:
        raise LoadError(f"cannot read the adapter folder '{folder}': {error}") from error
    except (ValueError, RecursionError, SafetensorError) as error:
        raise LoadError(f"'{folder}' is damaged: {error}") from error
    return parse(raw), tensors


def _adapter(name: str, entry: AdapterEntry) -> Adapter:
    known = METHODS.get(entry.method, [])
    method = next((m for m in known if m.module == entry.module), known[0] if len(known) == 1 else None)
    if method is None:
        raise LoadError(
            f"adapter '{name}' uses the method '{entry.method}' of the module '{entry.module}', "
            f"which is not loaded: import {entry.module} first"
        )
    try:
        return method(**entry.hyper)
    except AdaptcError as error:
        raise LoadError(f"adapter '{name}': {error}") from error


def _same_equation(equation: Equation, digest: str, text: str) -> None:
    if equation_hash(equation) != digest:
        raise LoadError(
            f"the equation of '{equation.adapter.name}' has changed since the file was written [{equation.where}]\n"
            f"in the file:\n{text}\nnow:\n{text_form(equation)}"
        )


def _layer(modules: dict[str, nn.Module], where: str, entry: LayerEntry) -> nn.Module:
    module = modules.get(where)
    if module is None or not where:
        raise LoadError(f"the model has no layer '{where}'")
    if not isinstance(module, AdaptedLinear):
        try:
            require_linear(module, f"'{where}'")
        except InjectError as error:
            raise LoadError(str(error)) from error
    have, want = sizes(module), (entry.n, entry.k)
    if have != want:
        raise LoadError(f"'{where}' is {have} in the model and {want} in the file")
    if (module.bias is not None) != entry.bias:
        raise LoadError(
            f"'{where}' has {'a' if module.bias is not None else 'no'} bias in the model, the file says otherwise"
        )
    if isinstance(module, AdaptedLinear):
        if module.merged:
            raise LoadError(f"'{where}' is merged: unmerge it before loading")
        for name, digest in entry.equations.items():
            if name in module.adapters and equation_hash(module._leaves(name).equation) != digest:
                raise LoadError(f"'{where}' has another adapter named '{name}': {module._leaves(name).adapter}")
    return module


@dataclass
class _Reader:
    """Leaves from the tensors of a file; shared ones once."""

    description: Description
    tensors: dict[str, Tensor]
    drawn: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.unused = set(self.tensors)

    def leaves(self, where: str, name: str, adapter: Adapter, entry: LayerEntry, module: nn.Module) -> Leaves:
        """The leaves of one adapter on one layer, every one checked."""
        try:
            equation = adapter.trace(entry.n, entry.k, Layer(where))
        except (AdaptcError, ArithmeticError, TypeError, ValueError) as error:
            raise LoadError(f"adapter '{name}' does not fit '{where}': {error}") from error
        digest = entry.equations[name]
        _same_equation(equation, digest, self.description.equations.get(digest, "<not in the file>"))
        weight = operand(module)
        wholes = self.description.shared.get(name, {})
        values = self.redraw(name, equation, weight, wholes)
        specs = {s.name: s for s in equation.leaves}
        for leaf in all_leaves(equation):
            if leaf.name not in values:
                values[leaf.name] = self.read(where, name, leaf, specs.get(leaf.name), weight, wholes)
        for s in equation.leaves:
            if s.shared and s.trainable:
                key = f"{name}.{s.shared}"
                values[s.name] = self.parameters.setdefault(key, nn.Parameter(values[s.name]))
        leaves = Leaves(adapter, equation, values, fresh=False)
        leaves.ahead = weight.is_meta
        return leaves

    def read(self, where: str, name: str, leaf: Leaf, spec: LeafSpec | None, weight: Tensor, wholes: Wholes) -> Tensor:
        """One stored leaf."""
        shared = spec.shared if spec else None
        key = _key(where, name, leaf.name, shared)
        if key not in self.tensors:
            raise LoadError(f"the file lacks '{key}'")
        want = _whole_size(leaf, shared, wholes)
        index = torch.int64 if leaf.kind == "integer" else None  # computed from W, as `nonzero` does
        dtype = leaf_dtype(spec, weight.dtype) if spec else index or default_dtype(weight.dtype)
        value = self.tensors[key]
        if tuple(value.shape) != want or value.is_floating_point() != dtype.is_floating_point:
            raise LoadError(f"'{key}' is {tuple(value.shape)} {value.dtype}, the equation needs {want} {dtype}")
        self.unused.discard(key)
        if shared and key in self.drawn:
            return self.drawn[key]
        self.drawn[key] = value = value.to(_place(weight), dtype, copy=True)  # not the file's buffer
        return value

    def redraw(self, name: str, equation: Equation, weight: Tensor, wholes: Wholes) -> dict[str, Tensor]:
        """Leaves that are not stored, drawn again; the others of the same seed are drawn too, to keep the order."""
        values: dict[str, Tensor] = {}
        generators: dict[int, torch.Generator] = {}
        for spec in equation.leaves:
            if spec.seed is None or not isinstance(spec.init, Init):
                continue
            key = f"{name}.{spec.shared}"
            if not spec.shared or key not in self.drawn:
                size = _whole_size(spec.leaf, spec.shared, wholes)
                generator = generators.setdefault(spec.seed, torch.Generator().manual_seed(spec.seed))
                value = draw(spec.init, size, generator, spec).to(_place(weight), leaf_dtype(spec, weight.dtype))
                self.drawn[key if spec.shared else ""] = value
            if not spec.store:
                values[spec.name] = self.drawn[key if spec.shared else ""]
        return values


def _place(weight: Tensor) -> torch.device:
    """Where leaves go: beside the weight, or in memory while that is only a size."""
    return torch.device("cpu") if weight.is_meta else weight.device


def _whole_size(leaf: Leaf, shared: str | None, wholes: Wholes) -> tuple[int, ...]:
    """The size a leaf is held in; a shared one at least as large as this layer's part."""
    own = tuple(int(d) for d in leaf.dims)
    if not shared:
        return own
    size = wholes.get(shared)
    if size is None or len(size) != len(own) or any(a > b for a, b in zip(own, size, strict=True)):
        raise LoadError(f"the shared leaf '{shared}' is {size} in the file, a layer needs {own}")
    return size
