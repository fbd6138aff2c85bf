"""Adapters on whole models. Whatever fails leaves the model as it was."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import torch
from torch import nn

from adaptc.equation import Layer
from adaptc.errors import InjectError
from adaptc.method import Adapter, Method
from adaptc.nn.base import (
    STATISTICS,
    acts_as_linear,
    as_adapter,
    operand,
    require_call,
    require_dropout,
    require_linear,
    require_name,
    sizes,
)
from adaptc.nn.leaves import Leaves, Moved, shared_once
from adaptc.nn.linear import AdaptedLinear, adapted_layers
from adaptc.nn.saved import require_saved
from adaptc.nn.siblings import fuse_siblings as fuse
from adaptc.runtime.attach import Wholes, attach
from adaptc.runtime.stack import stack

Targets = str | Sequence[str]
ALL_LINEAR = "all-linear"
Additions = dict[str, tuple[nn.Module, list[tuple[str, Leaves, float]]]]
"""By path: a module, and the adapters that it gets: name, leaves, dropout."""


def _matches(name: str, targets: Targets) -> bool:
    if isinstance(targets, str):
        try:
            return re.fullmatch(targets, name) is not None
        except re.error as error:
            raise InjectError(f"{targets!r} is no regular expression: {error}") from error
    return any(name == t or name.endswith(f".{t}") for t in targets)


def find(model: nn.Module, targets: Targets, exclude: Targets | None) -> dict[str, nn.Module]:
    """The modules that the patterns name. "all-linear": every linear layer but a language model's output layer and
    those whose parent reads their weight without calling them (nn.MultiheadAttention)."""
    modules = dict(model.named_modules(remove_duplicate=False))
    unreached = {f"{n}.out_proj".lstrip(".") for n, m in modules.items() if isinstance(m, nn.MultiheadAttention)}
    found: dict[str, nn.Module]
    if targets == ALL_LINEAR:
        head = getattr(model, "get_output_embeddings", lambda: None)()
        found = {
            n: m
            for n, m in modules.items()
            if (acts_as_linear(m) or isinstance(m, AdaptedLinear)) and m is not head and n not in unreached
        }
    else:
        inside = [n for n, m in modules.items() if isinstance(m, AdaptedLinear)]
        found = {
            n: m
            for n, m in modules.items()
            if n and _matches(n, targets) and not any(n.startswith(f"{i}.") for i in inside)
        }
    found = {n: m for n, m in found.items() if exclude is None or not _matches(n, exclude)}
    blocked = sorted(unreached & set(found))
    if blocked:
        raise InjectError(f"nn.MultiheadAttention reads the weight of '{blocked[0]}' without calling it: exclude it")
    return found


def inject(
    model: nn.Module,
    adapter: Adapter | Method,
    target_modules: Targets,
    name: str = "default",
    exclude_modules: Targets | None = None,
    dropout: float = 0.0,
    max_saved: str | int | None = None,
    fuse_siblings: bool = False,
) -> nn.Module:
    """Put an adapter on every matched linear layer, freeze the rest, return the model.

    target_modules: suffixes of module names, a regular expression for the whole name, or "all-linear".
    dropout: of the adapters' x while training. A layer that has adapters gets this one after them. max_saved: the most
    that a layer may keep for backward, in bytes at 1,024 tokens or as "1.5x" of the bytes of x. fuse_siblings: as
    `ac.fuse_siblings` on the model then; False leaves that as it is.
    Raises: InjectError when nothing matches or a match is no linear layer; PlanError, naming the least, when a layer
    must keep more; the equation's own errors. On any error the model is bit for bit what it was.
    """
    rate = require_dropout(dropout)
    target_modules = target_modules if isinstance(target_modules, str) else tuple(target_modules)
    bound = as_adapter(adapter)
    require_name(name)
    _require_one_meaning(model, bound, name)
    found = find(model, target_modules, exclude_modules)
    if not found:
        some = ", ".join([n for n, m in model.named_modules() if acts_as_linear(m)][:5]) or "none"
        raise InjectError(f"no module matches {target_modules!r}; linear layers here: {some}")
    if "" in found:
        raise InjectError("the model itself is a linear layer: wrap it with AdaptedLinear")
    state = torch.random.get_rng_state()
    try:
        leaves = _attach(bound, name, found, rate, max_saved)
    except BaseException:
        torch.random.set_rng_state(state)
        raise
    additions: Additions = {path: (module, [(name, leaves[id(module)], rate)]) for path, module in found.items()}
    commit(model, additions, max_saved=max_saved)
    if fuse_siblings:
        fuse(model)
    return model


def _require_one_meaning(model: nn.Module, adapter: Adapter, name: str) -> None:
    """One name is one adapter in a model, and its shared leaves are drawn once for all layers."""
    for path, layer in adapted_layers(model):
        if name not in layer.adapters:
            continue
        leaves = layer._leaves(name)
        if leaves.adapter != adapter:
            raise InjectError(f"'{name}' is {leaves.adapter} on '{path}' already: give {adapter} another name")
        if any(s.shared for s in leaves.equation.leaves):
            raise InjectError(
                f"'{name}' shares leaves with '{path}': inject all its layers at once, or use another name"
            )


def _attach(
    adapter: Adapter, name: str, found: dict[str, nn.Module], rate: float, max_saved: str | int | None
) -> dict[int, Leaves]:
    """The leaves of every matched layer, and every check that could fail; the model is not touched."""
    wholes, made, layers = Wholes(), {}, {}
    for path, module in found.items():
        if id(module) in layers:
            continue
        if isinstance(module, AdaptedLinear):
            if name in module.adapters:
                raise InjectError(f"'{path}' has an adapter named '{name}' already: give this one another name")
            if module.merged:
                raise InjectError(f"'{path}' is merged: unmerge or unload it before adding an adapter")
            before = tuple(map(module._part, module.active))
        else:
            require_linear(module, f"'{path}'")
            before = ()
        n, k = sizes(module)
        try:
            equation = adapter.trace(n, k, Layer(path))
            for training in (False, True):
                stack((*before, (equation, rate)), n, k, module.bias is not None, training)
            dtype = operand(module).dtype
            most = getattr(module, "max_saved", None) if max_saved is None else max_saved
            require_saved((*before, (equation, rate)), n, k, module.bias is not None, most, dtype)
        except Exception as error:
            error.add_note(f"while adapting '{path}', a layer with {n} outputs and {k} inputs")
            raise
        layers[id(module)] = (equation, operand(module), STATISTICS.get(module.__dict__.get("base", module)))
        wholes.grow(equation)
    group = Wholes(wholes.sizes)  # for values that are drawn later
    for key, (equation, weight, statistics) in sorted(layers.items(), key=lambda item: item[1][1].is_meta):
        values = shared_once(equation, attach(equation, weight, wholes, statistics), wholes)
        made[key] = Leaves(adapter, equation, values, group)
    group.values = {key: value for key, value in wholes.values.items() if not value.is_meta}
    group.parameters = {key: value for key, value in wholes.parameters.items() if not value.is_meta}
    if not any(leaves.waiting for leaves in made.values()):
        group.forget()
    return made


def tie(leaves: Sequence[Leaves]) -> None:
    """Let the shared leaves of one adapter stay one tensor."""
    moved: dict[int, Moved] = {}
    for one in leaves:
        for spec in one.equation.leaves:
            if spec.shared:
                one.share(spec.name, moved.setdefault(id(one[spec.name]), Moved()))


def commit(
    model: nn.Module,
    plan: Additions,
    active: dict[str, tuple[str, ...]] | None = None,
    max_saved: str | int | None = None,
) -> None:
    """Put checked leaves on their layers, freeze the rest. active: what is active then; None adds them all. max_saved:
    None leaves it as it is."""
    wrapped: dict[int, AdaptedLinear] = {}
    elsewhere = {id(m) for path, m in model.named_modules(remove_duplicate=False) if path not in plan}
    for path, (module, additions) in plan.items():
        if id(module) not in wrapped:
            layer = module if isinstance(module, AdaptedLinear) else AdaptedLinear.bare(_own(module, elsewhere))
            layer.max_saved = layer.max_saved if max_saved is None else max_saved
            for name, leaves, rate in additions:
                layer.hold(name, leaves, rate)
            layer.active = active[path] if active else (*layer.active, *(name for name, _, _ in additions))
            layer.train(module.training)
            wrapped[id(module)] = layer
        parent, _, last = path.rpartition(".")
        holder = model.get_submodule(parent)
        if isinstance(holder, nn.TransformerEncoderLayer):
            require_call(wrapped[id(module)])
        setattr(holder, last, wrapped[id(module)])
    tie([leaves for _, additions in plan.values() for _, leaves, _ in additions])
    ours = {id(p) for p in adapter_parameters(model)}
    for p in model.parameters():
        if id(p) not in ours:
            p.requires_grad_(False)


def _own(module: nn.Module, elsewhere: set[int]) -> nn.Module:
    """The module, or one with the same parameters where the model also uses it at a path that gets no adapter."""
    if id(module) not in elsewhere:
        return module
    twin = copy.copy(module)
    twin.__dict__["_parameters"] = dict(module._parameters)
    twin.__dict__["_buffers"] = dict(module._buffers)
    return twin


def adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The trained leaves of all adapters, each once."""
    found = {id(p): p for _, layer in adapted_layers(model) for p in layer.adapters.parameters()}
    return list(found.values())
