"""The leaves of one adapter on one layer, as a module: parameters and buffers under their own names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptc.method import Adapter, Equation
from adaptc.runtime.attach import all_leaves, cut


@dataclass
class Holder:
    """A tensor that several layers hold."""

    tensor: Tensor


class Leaves(nn.Module):
    """Parameters for the trained leaves, buffers for the others; shared ones are held whole.

    A leaf may have any name, so they are registered without nn.Module's check against its own attributes.
    """

    def __init__(self, adapter: Adapter, equation: Equation, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.adapter, self.equation = adapter, equation
        self._shared: dict[str, Holder] = {}
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

    def share(self, name: str, holder: Holder) -> None:
        """Let a buffer be one tensor with other layers', also after the model is moved or cast."""
        self._shared[name] = holder

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Leaves:
        before = {name: self._buffers[name] for name in self._shared}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, holder in self._shared.items():
            old, new = before[name], self._buffers[name]
            assert new is not None
            if holder.tensor is old or (holder.tensor.dtype, holder.tensor.device) != (new.dtype, new.device):
                holder.tensor = new
            self._buffers[name] = holder.tensor
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

    def tensors(self) -> list[Tensor]:
        """This layer's part of every leaf, in the order of the equation's arguments."""
        return [cut(self[name], dims) for name, dims in self._dims]

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
