"""What can be adapted: modules that compute x W^T + b from a floating-point matrix of their own."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from adaptc.errors import InjectError
from adaptc.method import Adapter, Method

STATISTICS: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()
"""What `calibrate` measured, by base module."""


def as_adapter(adapter: Adapter | Method) -> Adapter:
    """A method stands for itself with its defaults."""
    if isinstance(adapter, Method):
        return adapter()
    if not isinstance(adapter, Adapter):
        raise TypeError(f"not an adapter: {adapter!r}; declare it with @adaptc.adapter and call it")
    return adapter


def is_transposed(module: nn.Module) -> bool:
    """Does the module hold its weight as (k, n)? transformers' Conv1D does."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def acts_as_linear(module: nn.Module) -> bool:
    """An nn.Linear, or a Conv1D of transformers."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def require_call(module: nn.Module) -> None:
    """Keep nn.TransformerEncoderLayer from reading the weight in eval instead of calling the layer: it does not where a
    part has a hook."""
    if _only_calls not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_only_calls)


def allow_reading(module: nn.Module) -> None:
    """Take that back."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if hook is _only_calls:
            del module._forward_pre_hooks[key]


def _only_calls(module: nn.Module, args: Any) -> None:
    return None


def require_name(name: str) -> None:
    """Refuse a name that cannot stand in a state-dict key."""
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise InjectError(f"'{name}' cannot name an adapter: use an identifier that nn.ModuleDict does not use itself")


def require_dropout(dropout: Any) -> float:
    """A probability below 1."""
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise InjectError(f"a dropout probability is at least 0 and below 1, got {dropout!r}")
    return float(dropout)


def require_linear(module: nn.Module, where: str) -> None:
    """Raise unless a module is a linear layer over a floating-point matrix."""
    if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward:
        raise InjectError(
            f"{where} is a {type(module).__name__} with a forward of its own, which an adapter would replace"
        )
    if not acts_as_linear(module):
        raise InjectError(f"{where} is a {type(module).__name__}, not an nn.Linear")
    weight = module._parameters.get("weight")
    if weight is None or is_lazy(weight) or not weight.is_floating_point() or weight.ndim != 2:
        raise InjectError(f"the weight of {where} is not a floating-point matrix")


def sizes(module: nn.Module) -> tuple[int, int]:
    """n outputs and k inputs."""
    weight = module._parameters["weight"]
    assert weight is not None
    rows, cols = weight.shape
    return (cols, rows) if is_transposed(getattr(module, "base", module)) else (rows, cols)


def operand(module: nn.Module) -> Tensor:
    """W (n, k) of a base module: its own tensor, or a view."""
    weight = module._parameters["weight"]
    assert weight is not None
    return weight.t() if is_transposed(getattr(module, "base", module)) else weight
