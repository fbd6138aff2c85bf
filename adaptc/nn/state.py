"""The state of a model's adapters: which are active, what they are given, their initial values, their penalties."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adaptc.errors import LeafError, MergeError
from adaptc.nn.leaves import shared_once
from adaptc.nn.linear import adapted_layers
from adaptc.runtime.attach import Wholes
from adaptc.runtime.stack import stack


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
        parts = tuple(layer._part(n) for n in wanted if n in layer.adapters)
        stack(parts, layer.out_features, layer.in_features, layer.bias is not None, training=False)
    for layer in layers:
        layer.active = tuple(n for n in wanted if n in layer.adapters)


@contextmanager
def giving(model: nn.Module, **tensors: Any) -> Iterator[nn.Module]:
    """What equations ask for by name, for every forward inside: `with ac.giving(model, task=t): model(x)`.

    Raises: LeafError for a name that no equation of the model asks for.
    """
    layers = [layer for _, layer in adapted_layers(model)]
    asked = {g.name for layer in layers for a in layer.adapters for g in layer._leaves(a).equation.asked}
    unknown = sorted(set(tensors) - asked)
    if unknown:
        raise LeafError(f"no equation of the model asks for '{unknown[0]}': {', '.join(sorted(asked)) or 'none'} do")
    before = [layer.given for layer in layers]
    for layer in layers:
        layer.given = {**layer.given, **tensors}
    try:
        yield model
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.given = old


def reset(model: nn.Module) -> None:
    """Run the initialisers of every adapter again, from the present base weights; what was trained is lost.

    Leaves without a seed are drawn anew from torch's default generator. Raises: MergeError while a layer is merged; the
    initialisers' own errors, and then nothing has changed.
    """
    layers = [(name, layer) for name, layer in adapted_layers(model)]
    for path, layer in layers:
        if layer.merged:
            raise MergeError(f"'{path}' is merged: unmerge it before its leaves are computed again")
    wholes: dict[str, Wholes] = {}
    for _, layer in layers:
        for name in layer.adapters:
            wholes.setdefault(name, Wholes()).grow(layer._leaves(name).equation)
    new = []
    for _, layer in layers:
        for name in layer.adapters:
            values = layer.renewed(name, wholes[name], everything=True)
            leaves = layer._leaves(name)
            new.append((leaves, shared_once(leaves.equation, values, wholes[name])))
    for leaves, values in new:
        leaves.renew(values)
    for _, layer in layers:
        layer.active = layer.active


def refresh(model: nn.Module) -> None:
    """Drop what layers made from their parameters and hold between calls, after edits that torch does not count.

    These are `p.data.add_(...)` and other writes past a parameter into its memory, from NumPy or a kernel that takes
    addresses. Only calls without gradients use what is held, and siblings (`ac.fuse_siblings`) between their calls. An
    edit of the parameter itself, a step of a `torch.optim` optimizer, `p.data = t`, `ac.load`, `load_state_dict` and
    `to` are seen.
    """
    for _, layer in adapted_layers(model):
        layer.active = layer.active
        if layer.siblings is not None:
            layer.siblings.drop()


def penalties(model: nn.Module) -> Tensor:
    """The sum of the active adapters' penalties, a differentiable scalar to add to the loss; 0 where there are none."""
    found = [layer.penalty() for _, layer in adapted_layers(model)]
    terms = [t for t in found if t is not None]
    return torch.stack(terms).sum() if terms else torch.zeros(())


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
