"""Fold adapters into the weights of a model, and take them out again."""

from __future__ import annotations

from torch import nn

from adaptc.errors import MergeError
from adaptc.ir.prims import Leaf
from adaptc.nn.base import allow_reading
from adaptc.nn.linear import AdaptedLinear, adapted_layers


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
            allow_reading(base)
            setattr(model.get_submodule(parent), last, base)
    return model
