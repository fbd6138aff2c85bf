"""Adapters on whole models. Whatever fails leaves the model as it was."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from adaptc.errors import InjectError, MergeError
from adaptc.ir.prims import Leaf
from adaptc.method import Adapter, Method
from adaptc.nn.leaves import Holder, Leaves
from adaptc.nn.linear import AdaptedLinear, as_adapter, require_linear, require_name, require_no_dropout
from adaptc.runtime.attach import Wholes, attach
from adaptc.runtime.stack import stack

Targets = str | Sequence[str]
ALL_LINEAR = "all-linear"


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """Every adapted layer with its name."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, AdaptedLinear))


def _matches(name: str, targets: Targets) -> bool:
    if isinstance(targets, str):
        try:
            return re.fullmatch(targets, name) is not None
        except re.error as error:
            raise InjectError(f"{targets!r} is no regular expression: {error}") from error
    return any(name == t or name.endswith(f".{t}") for t in targets)


def find(model: nn.Module, targets: Targets, exclude: Targets | None) -> dict[str, nn.Module]:
    """The modules that the patterns name. "all-linear": every nn.Linear but a language model's output layer and
    those whose parent reads their weight without calling them (nn.MultiheadAttention)."""
    modules = dict(model.named_modules(remove_duplicate=False))
    unreached = {f"{n}.out_proj".lstrip(".") for n, m in modules.items() if isinstance(m, nn.MultiheadAttention)}
    found: dict[str, nn.Module]
    if targets == ALL_LINEAR:
        head = getattr(model, "get_output_embeddings", lambda: None)()
        found = {
            n: m
            for n, m in modules.items()
            if isinstance(m, (nn.Linear, AdaptedLinear)) and m is not head and n not in unreached
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
) -> nn.Module:
    """Put an adapter on every matched linear layer, freeze the rest, return the model.

    target_modules: suffixes of module names, a regular expression for the whole name, or "all-linear".
    A layer that has adapters gets this one after them. Raises: InjectError when nothing matches or a match is no
    linear layer; the equation's own errors. On any error the model is bit for bit what it was.
    """
    require_no_dropout(dropout)
    target_modules = target_modules if isinstance(target_modules, str) else tuple(target_modules)
    bound = as_adapter(adapter)
    require_name(name)
    _require_one_meaning(model, bound, name)
    found = find(model, target_modules, exclude_modules)
    if not found:
        some = ", ".join([n for n, m in model.named_modules() if isinstance(m, nn.Linear)][:5]) or "none"
        raise InjectError(f"no module matches {target_modules!r}; linear layers here: {some}")
    if "" in found:
        raise InjectError("the model itself is a linear layer: wrap it with AdaptedLinear")
    state = torch.random.get_rng_state()
    try:
        leaves = _attach(bound, name, found)
    except BaseException:
        torch.random.set_rng_state(state)
        raise
    commit(model, {path: (module, [(name, leaves[id(module)])]) for path, module in found.items()})
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


def _attach(adapter: Adapter, name: str, found: dict[str, nn.Module]) -> dict[int, Leaves]:
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
            before = tuple(module._leaves(a).adapter for a in module.active)
        else:
            require_linear(module, f"'{path}'")
            before = ()
        weight = module.weight
        assert isinstance(weight, Tensor)
        n, k = weight.shape
        try:
            equation = adapter.trace(n, k)
            stack((*before, adapter), n, k, module.bias is not None)
        except Exception as error:
            error.add_note(f"while adapting '{path}', a layer with {n} outputs and {k} inputs")
            raise
        layers[id(module)] = (equation, weight)
        wholes.grow(equation)
    parameters: dict[str, nn.Parameter] = {}
    for key, (equation, weight) in layers.items():
        values = attach(equation, weight, wholes)
        for spec in equation.leaves:
            if spec.shared and spec.trainable:  # one parameter for all layers
                whole = values[spec.name]
                values[spec.name] = parameters.setdefault(spec.shared, nn.Parameter(whole.detach()))
        made[key] = Leaves(adapter, equation, values)
    return made


def tie(leaves: Sequence[Leaves]) -> None:
    """Let shared buffers of one adapter stay one tensor."""
    holders: dict[int, Holder] = {}
    for one in leaves:
        for spec in one.equation.leaves:
            if spec.shared and not spec.trainable:
                value = one[spec.name]
                one.share(spec.name, holders.setdefault(id(value), Holder(value)))


def commit(
    model: nn.Module,
    plan: dict[str, tuple[nn.Module, list[tuple[str, Leaves]]]],
    active: dict[str, tuple[str, ...]] | None = None,
) -> None:
    """Put checked leaves on their layers, freeze the rest. active: what is active then; None adds them all."""
    wrapped: dict[int, AdaptedLinear] = {}
    elsewhere = {id(m) for path, m in model.named_modules(remove_duplicate=False) if path not in plan}
    for path, (module, additions) in plan.items():
        if id(module) not in wrapped:
            layer = module if isinstance(module, AdaptedLinear) else AdaptedLinear.bare(_own(module, elsewhere))
            for name, leaves in additions:
                layer.hold(name, leaves)
            layer.active = active[path] if active else (*layer.active, *(name for name, _ in additions))
            layer.train(module.training)
            wrapped[id(module)] = layer
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, wrapped[id(module)])
    tie([leaves for _, additions in plan.values() for _, leaves in additions])
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


def set_active(model: nn.Module, names: str | Sequence[str]) -> None:
    """Apply these adapters, in this order, where a layer has them. Raises KeyError for a name that no layer has."""
    wanted = (names,) if isinstance(names, str) else tuple(names)
    layers = [layer for _, layer in adapted_layers(model)]
    for name in wanted:
        if not any(name in layer.adapters for layer in layers):
            known = sorted({a for layer in layers for a in layer.adapters})
            raise KeyError(f"no adapter named '{name}': the model has {', '.join(known) or 'none'}")
    for layer in layers:
        if layer.merged:
            raise MergeError("unmerge before changing the active adapters")
        active = tuple(n for n in wanted if n in layer.adapters)
        adapters = tuple(layer._leaves(n).adapter for n in active)
        stack(adapters, layer.out_features, layer.in_features, layer.bias is not None)
    for layer in layers:
        layer.active = tuple(n for n in wanted if n in layer.adapters)


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """The model without its adapters: the original bits, also while merged."""
    layers = [layer for _, layer in adapted_layers(model)]
    for layer in layers:
        if layer.merged:
            layer._originals()  # raises if they were not kept
    for layer in layers:
        layer.disabled += 1
    try:
        yield model
    finally:
        for layer in layers:
            layer.disabled -= 1


def merge(model: nn.Module, reversible: bool = True, untie: bool = False) -> None:
    """Fold the active adapters of every layer into its weight.

    All new weights are computed before the first is written, so that a failure changes nothing. Raises: MergeError for
    a method of the output form, a weight that another module shares (both are named; untie=True gives the layer a copy
    of its own), a weight that is not finite, a model without adapters.
    """
    layers = [(name, layer) for name, layer in adapted_layers(model) if not layer.merged]
    if not layers:
        raise MergeError("there is no unmerged adapter in the model")
    shared = _shared_weights(model, layers)
    if shared and not untie:
        first, other = shared[0][1:]
        raise MergeError(f"'{first}' and '{other}' share one tensor: merge with untie=True to give '{first}' its own")
    folded = []
    for name, layer in layers:
        try:
            folded.append(layer.folded())
        except MergeError as error:
            error.add_note(f"while merging '{name}'")
            raise
    for layer, mine, _ in shared:
        key = mine.rpartition(".")[2]
        old = layer._parameters[key]
        assert old is not None
        layer._parameters[key] = nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad)
    for (_, layer), (weight, bias) in zip(layers, folded, strict=True):
        layer.fold(weight, bias, reversible)


def _shared_weights(model: nn.Module, layers: list[tuple[str, AdaptedLinear]]) -> list[tuple[AdaptedLinear, str, str]]:
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, p in module._parameters.items():
            if p is not None:
                owners.setdefault(p.untyped_storage().data_ptr(), []).append(f"{name}.{key}")
    found = []
    for name, layer in layers:
        for key in ("weight", "bias"):
            p = layer._parameters[key]
            if p is None or (key == "bias" and isinstance(layer.stack().bias, Leaf)):
                continue
            others = [o for o in owners[p.untyped_storage().data_ptr()] if o != f"{name}.{key}"]
            if others:
                found.append((layer, f"{name}.{key}", others[0]))
    return found


def unmerge(model: nn.Module) -> None:
    """Put every original weight back, bit for bit. Raises MergeError if one was not kept."""
    layers = [layer for _, layer in adapted_layers(model) if layer.merged]
    if not layers:
        raise MergeError("there is no merged adapter in the model")
    for layer in layers:
        layer._originals()
    for layer in layers:
        layer.unmerge()


def unload(model: nn.Module) -> nn.Module:
    """Take every adapter off and give the plain layers back, merged weights as they are."""
    if isinstance(model, AdaptedLinear):
        plain: nn.Module = model.__dict__["base"]
        return plain.train(model.training)
    for path, layer in list(model.named_modules(remove_duplicate=False)):
        if isinstance(layer, AdaptedLinear):
            parent, _, last = path.rpartition(".")
            base = layer.__dict__["base"]
            base.train(layer.training)
            setattr(model.get_submodule(parent), last, base)
    return model
