"""What a call of a layer needs beside x: tensors from outside, a seed, and how it is repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from adaptc.equation import GivenSpec
from adaptc.errors import DtypeError, LeafError, ShapeError
from adaptc.ir.dims import TOKENS, show
from adaptc.nn.leaves import Source
from adaptc.runtime import native
from adaptc.runtime.stack import Stack

LOWEST, HIGHEST = -(2**63), 2**63 - 1


def fresh_seed(device: torch.device) -> Tensor:
    """One whole number from torch's default generator, so that `manual_seed`, checkpointing and replay work."""
    return torch.randint(LOWEST, HIGHEST, (), device=device)


@dataclass(frozen=True)
class Ask:
    """What a call must give: plain values alone, since torch.compile looks into them.

    by_token: is the first axis of the tensor a row a token? size: the other axes, or all.
    """

    name: str
    by_token: bool
    size: tuple[int, ...]
    integer: bool
    default: float | None
    where: str

    @classmethod
    def of(cls, g: GivenSpec) -> Ask:
        """From an equation's."""
        dims = g.leaf.dims
        by_token = bool(dims) and dims[0] == TOKENS
        size = tuple(int(d) for d in dims[by_token:]) if all(isinstance(d, int) for d in dims[by_token:]) else ()
        return cls(g.name, by_token, size, g.leaf.kind == "integer", g.default, g.where)


@dataclass
class Mode:
    """The active adapters as they are in training or in eval."""

    stack: Stack
    name: str  # in calls of the registered operators
    seeded: bool
    asks: tuple[Ask, ...]


def refuse(x: Any, width: int) -> NoReturn:
    """Say what is wrong with x, for a layer that takes rows of a width."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise DtypeError(f"x must be real floating point, got {x.dtype}")
    if not x.ndim:
        raise ShapeError(f"x must have rows of {width}, got a scalar")
    raise ShapeError(f"x has rows of {x.shape[-1]}, the layer takes {width}")


def repeated(
    x: Tensor,
    parameters: dict[str, Any],
    sources: Sequence[Source],
    target: Callable[..., Tensor],
    entries: tuple[int, int],
) -> Any | None:
    """A function of x that gives target(x, W, bias, *leaves) while all are of the kind they are now, and None
    otherwise; None where their kinds cannot be compared in one native call. entries: the least and the most of x.
    """
    if not native.looks() or any(s.cut is not None for s in sources):
        return None
    held = [*((parameters, name) for name in ("weight", "bias")), *((s.holder, s.key) for s in sources)]
    return native.repeat(x, held, target, *entries)


def given_tensors(asks: Sequence[Ask], x: Tensor, named: Mapping[str, Any], around: Mapping[str, Any]) -> list[Tensor]:
    """What the equations are given, one row a token. named: arguments of the call; around: from `giving`.

    Raises: LeafError for a name that no equation asks for, or one that is missing; ShapeError, DtypeError.
    """
    asked = [a.name for a in asks]
    unknown = [name for name in named if name not in asked]
    if unknown:
        raise LeafError(f"no adapter of the layer asks for '{unknown[0]}': given are {', '.join(asked) or 'none'}")
    values = {**{n: v for n, v in around.items() if n in asked}, **named}
    return [_one(a, x, values) for a in asks]


def _one(a: Ask, x: Tensor, values: Mapping[str, Any]) -> Tensor:
    rows = x.shape[:-1].numel()
    if a.name not in values:
        if a.default is None:
            raise LeafError(
                f"the equation needs '{a.name}': call layer(x, {a.name}=...), or with ac.giving(model, {a.name}=...)",
                a.where,
            )
        dtype = torch.int64 if a.integer else x.dtype
        return torch.full((rows, *a.size) if a.by_token else a.size, a.default, dtype=dtype, device=x.device)
    value = torch.as_tensor(values[a.name], device=x.device)
    if a.integer and (value.is_floating_point() or value.is_complex()):
        raise DtypeError(f"'{a.name}' holds whole numbers, got {value.dtype}")
    value = value.long() if a.integer else value if value.is_floating_point() else value.to(x.dtype)
    return _rows(a, x, value, rows)


def _rows(a: Ask, x: Tensor, value: Tensor, rows: int) -> Tensor:
    """One row a token: as given, flattened like x, or an example's row repeated over its tokens."""
    shape, lead = tuple(value.shape), tuple(x.shape[:-1])
    if not a.by_token:
        if shape != a.size:
            raise ShapeError(f"'{a.name}' is {show(shape)}, the equation wants {show(a.size)}", a.where)
        return value
    if shape == (rows, *a.size):
        return value
    if shape == (*lead, *a.size):
        return value.reshape(rows, *a.size)
    if len(lead) > 1 and shape == (lead[0], *a.size):
        return value.repeat_interleave(rows // max(lead[0], 1), dim=0)
    raise ShapeError(
        f"'{a.name}' is {show(shape)}: wanted {show((rows, *a.size))}, a row a token"
        + (f", or {show((lead[0], *a.size))}, a row an example" if len(lead) > 1 else ""),
        a.where,
    )
