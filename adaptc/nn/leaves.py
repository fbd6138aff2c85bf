"""The leaves of one adapter on one layer, as a module: parameters and buffers under their own names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from adaptc.equation import Equation
from adaptc.method import Adapter
from adaptc.runtime.attach import Wholes, all_leaves, from_weight

UNKNOWN = (math.nan, math.nan)  # unlike every other print


class Moved:
    """Where a leaf that several layers hold went when the model was last moved or cast: the first layer says, the
    others follow."""

    def __init__(self) -> None:
        self.old: Callable[[], Any] = _nothing
        self.new: Callable[[], Any] = _nothing

    def follow(self, old: Tensor, new: Tensor) -> Tensor:
        """The tensor that stands for `old` now."""
        if self.old() is old and self.new() is not None:
            found: Tensor = self.new()
            return found
        self.old, self.new = ref(old), ref(new)
        return new

    def __reduce__(self) -> Any:
        return Moved, ()  # for the copy, nothing has moved yet


def _nothing() -> None:
    return None


OWN = ("adapter", "equation", "group", "derived", "waiting", "ahead", "training")


class Source:
    """Where a tensor is: looked up in every call, since the entry may be replaced. A class of its own, because
    torch.export copies what is in tuples and dicts of a module."""

    __slots__ = ("cut", "holder", "key")

    def __init__(self, holder: dict[str, Any], key: str, cut: tuple[slice, ...] | None) -> None:
        self.holder, self.key, self.cut = holder, key, cut

    def read(self) -> Tensor:
        """The tensor, or the part of it that is this layer's."""
        value: Tensor = self.holder[self.key]
        return value if self.cut is None else value[self.cut]


class Leaves(nn.Module):
    """Parameters for the trained leaves, buffers for the others; shared ones are held whole.

    A leaf may have any name, so they are registered without nn.Module's check against its own attributes.
    group: what the layers of an adapter share when their values are drawn later, once the base weights are there;
    waiting: is that so? fresh: are these initial values, or do they come from a file?
    """

    def __init__(
        self,
        adapter: Adapter,
        equation: Equation,
        values: Mapping[str, Tensor],
        group: Wholes | None = None,
        fresh: bool = True,
    ) -> None:
        super().__init__()
        self.adapter, self.equation = adapter, equation
        self.group = Wholes() if group is None else group
        self.group.grow(equation)
        self._shared: dict[str, Moved] = {}
        self._unnamed = False  # does the state dict that is being loaded hold no leaf of this layer?
        trained = {s.name for s in equation.leaves if s.trainable}
        stored = {s.name for s in equation.leaves if s.store} | {leaf.name for leaf, _ in equation.attach}
        self._dims = [(leaf.name, leaf.dims) for leaf in all_leaves(equation)]
        for name, _ in self._dims:
            value = values[name]
            if name in trained:
                known = isinstance(value, nn.Parameter)
                self._parameters[name] = value if known else nn.Parameter(value)  # type: ignore[assignment]
            else:
                self._buffers[name] = value
                if name not in stored:
                    self._non_persistent_buffers_set.add(name)

        self.derived = from_weight(equation)
        self.waiting = self._on_meta()
        self._start = self._prints() if fresh else dict.fromkeys(self._parameters, UNKNOWN)
        self.ahead = False  # were these loaded before the base weights?

    def _prints(self) -> dict[str, tuple[float, float]]:
        """The trained leaves in short, where others were computed from W: to see later whether they were trained."""
        if not self.derived or self.waiting or self._on_meta():
            return {}
        wide = {name: p.detach().double().flatten() for name, p in self._parameters.items() if p is not None}
        places = {name: torch.linspace(1, 2, len(p), dtype=p.dtype, device=p.device) for name, p in wide.items()}
        return {name: (float(p.sum()), float(p @ places[name])) for name, p in wide.items()}

    def _on_meta(self) -> bool:
        return any(value.is_meta for value in self.values().values())

    def trained(self) -> list[str]:
        """Names of the leaves that are no longer what they were at attach time."""
        if self.waiting:
            return []
        now = self._prints()
        return [name for name, print_ in self._start.items() if now.get(name) != print_]

    @torch.no_grad()
    def renew(self, values: Mapping[str, Tensor]) -> None:
        """Take values as newly attached. Tensors stay the same objects unless they were on the meta device."""
        for name in values:
            mine, value = self[name], values[name]
            if mine.device == value.device and mine.dtype == value.dtype and not mine.is_meta:
                mine.copy_(value)
            elif name in self._parameters:
                known = isinstance(value, nn.Parameter)
                self._parameters[name] = value if known else nn.Parameter(value)  # type: ignore[assignment]
            else:
                self._buffers[name] = value
        self.waiting = False
        self._start = self._prints()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """The state of a layer without adapters fits, also under strict=True; the layer says so before."""
        before = {name: self[name] for name in self._shared}
        if not self._unnamed:
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._unnamed = False
        self._follow(before)

    def share(self, name: str, moved: Moved) -> None:
        """Let a leaf be one tensor with other layers', also after the model is moved or cast."""
        self._shared[name] = moved

    def _follow(self, before: Mapping[str, Tensor]) -> None:
        """Where shared leaves became other tensors, take those that the first layer got."""
        for name, moved in self._shared.items():
            if self[name] is not before[name]:
                setattr(self, name, moved.follow(before[name], self[name]))

    def __setattr__(self, name: str, value: Any) -> None:
        """A tensor for a leaf goes where the leaf is, whatever its name."""
        for held in (self.__dict__.get("_parameters", {}), self.__dict__.get("_buffers", {})):
            if name in held and isinstance(value, Tensor):
                held[name] = value
                return
        if name in OWN and not isinstance(value, Tensor):
            self.__dict__[name] = value  # a leaf may have the same name
            return
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Leaves:
        before = {name: self[name] for name in self._shared}
        untouched = not self.trained()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._follow(before)
        if self._on_meta():
            self.waiting = True
            self.group.forget()
        if untouched:
            self._start = self._prints()
        return self

    @torch.no_grad()
    def take(self, other: Leaves) -> None:
        """Copy the values of other leaves of this equation; the tensors stay the same objects where sizes agree."""
        for name, value in other.values().items():
            mine = self[name]
            if mine.shape == value.shape:
                mine.copy_(value)
            elif name in self._parameters:
                self._parameters[name] = other._parameters[name]
            else:
                self._buffers[name] = value

    def __getitem__(self, name: str) -> Tensor:
        value = self._parameters[name] if name in self._parameters else self._buffers[name]
        assert value is not None
        return value

    def values(self) -> dict[str, Tensor]:
        """Every leaf by name, shared ones whole."""
        return {name: self[name] for name, _ in self._dims}

    def sources(self) -> list[Source]:
        """Where this layer's part of every leaf is, in the order of the equation's arguments."""
        found = []
        for name, dims in self._dims:
            holder: dict[str, Any] = self._parameters if name in self._parameters else self._buffers
            size = tuple(int(d) for d in dims)
            whole = tuple(holder[name].shape) == size
            found.append(Source(holder, name, None if whole else tuple(slice(d) for d in size)))
        return found

    def extra_repr(self) -> str:
        return repr(self.adapter)


class Originals(nn.Module):
    """Weights as they were before a merge: moved with the model, never in its state dict."""

    def __init__(self, weight: Tensor, bias: Tensor | None, had_bias: bool) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().clone(), persistent=False)
        self.had_bias = had_bias

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(b.nbytes for b in self.buffers())


def shared_once(equation: Equation, values: dict[str, Tensor], wholes: Wholes) -> dict[str, Tensor]:
    """The same values, with one parameter for a trained leaf that layers share."""
    for spec in equation.leaves:
        if spec.shared and spec.trainable:
            made = wholes.parameters.setdefault(spec.shared, nn.Parameter(values[spec.name].detach()))
            values[spec.name] = made
    return values
