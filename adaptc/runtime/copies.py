"""Tensors whose axes are in another order, written without gaps by a kernel of `csrc/`."""

from __future__ import annotations

import functools
from math import prod

import torch
from torch import Tensor

from adaptc.runtime.native import BEST, available, threads_for

if available():
    from adaptc import _native

LOOPS = 12
LONG = 32  # entries: such runs torch copies as fast
TILE = 8  # entries: both axes of a tile that is turned have as many

Loop = tuple[int, int, int]  # how often, and how far out and the source go on


def reshape(t: Tensor, shape: tuple[int, ...], level: int = BEST) -> Tensor:
    """t.reshape(shape): a view if there is one, else a copy."""
    if t.dtype != torch.float32 or t.is_contiguous() or is_view(t.shape, t.stride(), shape):
        return t.reshape(shape)
    loops, turned = order(t.shape, t.stride())
    if len(loops) > LOOPS or (loops[-1][2] == 1 and loops[-1][0] >= LONG):
        return t.reshape(shape)
    out = torch.empty(shape, dtype=t.dtype)
    _native.copy(t.data_ptr(), out.data_ptr(), loops, turned, threads_for(t.numel()), level)
    return out


@functools.lru_cache(maxsize=1024)
def is_view(shape: tuple[int, ...], strides: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Can a tensor be looked at in another shape? An empty one can."""
    try:
        if 0 not in shape:
            torch.empty_strided(shape, strides, device="meta").view(to)
    except RuntimeError:  # torch has no other way to ask
        return False
    return True


@functools.lru_cache(maxsize=1024)
def order(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[tuple[Loop, ...], bool]:
    """The loops of a copy, those that follow each other without gaps as one, and whether its last two are a tile that
    is turned."""
    found: list[Loop] = []
    for j, (extent, stride) in enumerate(zip(shape, strides, strict=True)):
        if extent == 1:
            continue
        to = prod(shape[j + 1 :])
        if found and found[-1][2] == extent * stride:
            extent *= found.pop()[0]
        found.append((extent, to, stride))
    found = found or [(1, 1, 1)]
    across = next((j for j, (extent, _, stride) in enumerate(found[:-1]) if stride == 1 and extent >= TILE), None)
    turned = across is not None and found[-1][0] >= TILE
    if across is not None and turned:
        found = [*found[:across], *found[across + 1 : -1], found[across], found[-1]]
    elif found[-1][0] < TILE:  # many short runs: along the longest loop instead
        longest = max(range(len(found)), key=lambda j: found[j][0])
        found = [*found[:longest], *found[longest + 1 :], found[longest]]
    return tuple(found), turned
