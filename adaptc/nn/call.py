"""What a call of a layer needs beside x: tensors from outside, and a seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adaptc.errors import DtypeError, LeafError, ShapeError
from adaptc.ir.dims import TOKENS, show
from adaptc.method import GivenSpec
from adaptc.runtime.stack import Stack

LOWEST, HIGHEST = -(2**63), 2**63 - 1


def fresh_seed(device: torch.device) -> Tensor:
    """One whole number from torch's default generator, so that `manual_seed`, checkpointing and replay work."""
    return torch.randint(LOWEST, HIGHEST, (), device=device)


def given_tensors(stack: Stack, x: Tensor, named: Mapping[str, Any], around: Mapping[str, Any]) -> list[Tensor]:
    """What the equations are given, one row a token. named: arguments of the call; around: from `giving`.

    Raises: LeafError for a name that no equation asks for, or one that is missing; ShapeError, DtypeError.
    """
    asked = {g.name: g for g in stack.given}
    unknown = [name for name in named if name not in asked]
    if unknown:
        raise LeafError(f"no adapter of the layer asks for '{unknown[0]}': given are {', '.join(asked) or 'none'}")
    values = {**{n: v for n, v in around.items() if n in asked}, **named}
    return [_one(g, x, values) for g in stack.given]


def _one(g: GivenSpec, x: Tensor, values: Mapping[str, Any]) -> Tensor:
    rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    if g.name not in values:
        if g.default is None:
            raise LeafError(
                f"the equation needs '{g.name}': call layer(x, {g.name}=...), or with ac.giving(model, {g.name}=...)",
                g.where,
            )
        size = [rows if d == TOKENS else int(d) for d in g.leaf.dims]
        dtype = torch.int64 if g.leaf.kind == "integer" else x.dtype
        return torch.full(size, g.default, dtype=dtype, device=x.device)
    value = torch.as_tensor(values[g.name], device=x.device)
    if g.leaf.kind == "integer" and (value.is_floating_point() or value.is_complex()):
        raise DtypeError(f"'{g.name}' holds whole numbers, got {value.dtype}")
    value = value.long() if g.leaf.kind == "integer" else value if value.is_floating_point() else value.to(x.dtype)
    return _rows(g, x, value, rows)


def _rows(g: GivenSpec, x: Tensor, value: Tensor, rows: int) -> Tensor:
    """One row a token: as given, flattened like x, or an example's row repeated over its tokens."""
    dims = g.leaf.dims
    if not dims or dims[0] != TOKENS:
        wanted = tuple(int(d) for d in dims)
        if tuple(value.shape) != wanted:
            raise ShapeError(f"'{g.name}' is {show(tuple(value.shape))}, the equation wants {show(wanted)}", g.where)
        return value
    rest = tuple(int(d) for d in dims[1:])
    lead = x.shape[:-1]
    if tuple(value.shape) == (rows, *rest):
        return value
    if tuple(value.shape) == (*lead, *rest):
        return value.reshape(rows, *rest)
    if tuple(value.shape) == (lead[0], *rest) and len(lead) > 1:
        return value.repeat_interleave(rows // max(lead[0], 1), dim=0)
    raise ShapeError(
        f"'{g.name}' is {show(tuple(value.shape))}: wanted {show((rows, *rest))}, a row a token"
        + (f", or {show((lead[0], *rest))}, a row an example" if len(lead) > 1 else ""),
        g.where,
    )
