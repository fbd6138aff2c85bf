"""Products of two tensors that are bound by memory: elementwise ones and those with sums, by a kernel of `csrc/`.

Which index goes along vectors, and in what order the others are looped over, follows from sizes and strides; it is
decided once for each kind of call. Sums are float32, in an order that no number of threads changes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from adaptc.errors import ShapeError
from adaptc.runtime.native import BEST, CODES, available, threads_for

if available():
    from adaptc import _native

TYPES = {**CODES, torch.complex64: 2}
TILE = 4096  # sums that are held at a time, as in csrc/include/products.h
SHORT = 8  # entries: an index along vectors should have more
PREFERRED = 16  # entries: the last axis of the result goes along vectors if it has as many, so that it lies as asked
LOOPS = 12

Loop = tuple[int, int, int, int]  # how often, and how far out, a and b go on


@dataclass(frozen=True)
class Kind:
    """What is known of a call: 'ab,cb->ac', and the operands' shapes, strides and dtypes."""

    spec: str
    shapes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]  # of the operands and of the result
    scale: float
    conjugated: tuple[bool, bool] = (False, False)  # are the operands, which are then not looked at as such?

    @property
    def complex(self) -> bool:
        """Are the numbers complex?"""
        return self.dtypes[0].is_complex


@dataclass(frozen=True)
class Prepared:
    """The kernel for a kind. packed: which operand is copied first, if any, and the order of its axes. shape: of the
    result as it lies in memory; back: its axes from there."""

    call: Any
    packed: tuple[int, tuple[int, ...]] | None
    swapped: bool
    shape: tuple[int, ...]
    back: tuple[int, ...]
    work: int


def product(spec: str, a: Tensor, b: Tensor, dtype: torch.dtype, scale: float = 1.0, level: int = BEST) -> Tensor:
    """scale * einsum(spec, a, b) in dtype, summed in float32; where no index goes along vectors, by torch.einsum.

    a and b are float32 or bfloat16, or both and the result complex64. The result may be a view of a tensor whose axes
    are in another order. Raises ShapeError where sizes disagree.
    """
    conjugated = a.is_conj(), b.is_conj()
    a, b = (t.conj() if c else t for t, c in zip((a, b), conjugated, strict=True))
    shapes, strides = (tuple(a.shape), tuple(b.shape)), (a.stride(), b.stride())
    found = prepare(Kind(spec, shapes, strides, (a.dtype, b.dtype, dtype), scale, conjugated), level)
    if found is None:
        wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        a, b = (t.conj() if c else t for t, c in zip((a, b), conjugated, strict=True))
        return (torch.einsum(spec, a.to(wide), b.to(wide)) * scale).to(dtype)
    out = torch.empty(found.shape, dtype=dtype)
    if found.packed:
        which, order = found.packed
        if which:
            b = b.permute(order).contiguous()
        else:
            a = a.permute(order).contiguous()
    first, second = (b, a) if found.swapped else (a, b)
    found.call(first.data_ptr(), second.data_ptr(), out.data_ptr(), threads_for(found.work))
    return out.permute(found.back)


@functools.lru_cache(maxsize=1024)
def prepare(kind: Kind, level: int = BEST) -> Prepared | None:
    """The kernel for a kind of call; None where no index goes along vectors, or nothing is to be done."""
    terms, out = kind.spec.split("->")
    inputs = terms.split(",")
    extents: dict[str, int] = {}
    steps: list[dict[str, int]] = []
    for letters, shape, stride in zip(inputs, kind.shapes, kind.strides, strict=True):
        for c, size in zip(letters, shape, strict=True):
            if extents.setdefault(c, size) != size:
                raise ShapeError(f"'{kind.spec}': index {c} is {extents[c]} and {size}; shapes {kind.shapes}")
        steps.append({c: s for c, s, e in zip(letters, stride, shape, strict=True) if e > 1})
    if not all(extents.values()):
        return None
    packed, along = None, _along(out, extents, steps, kind.complex)
    if along is None or extents[along] < SHORT:
        copied = _copied(inputs, out, extents, steps, kind.complex)
        if copied is not None and (along is None or extents[copied[2]] > extents[along]):
            packed, steps, along = copied[0], copied[1], copied[2]
    if along is None:
        return None
    swapped = steps[0].get(along) != 1
    a, b = reversed(steps) if swapped else steps
    storage = [c for c in out if c != along] + [along] * (along in out)
    to = _dense(storage, extents)
    summed = sorted((c for c in extents if c not in out), key=lambda c: (c == along, -a.get(c, 0), -b.get(c, 0)))
    loops = {c: (extents[c], to.get(c, 0), a.get(c, 0), b.get(c, 0)) for c in extents}
    groups = _nested(storage, summed, along, loops)
    if sum(map(len, groups)) > LOOPS:
        return None
    first, second = reversed(kind.dtypes[:2]) if swapped else kind.dtypes[:2]
    signs = [-1.0 if c else 1.0 for c in (kind.conjugated[::-1] if swapped else kind.conjugated)]
    call = _native.Multiply(
        [loop for group in groups for loop in group],
        len(groups[0]),
        len(groups[1]),
        TYPES[first],
        TYPES[second],
        TYPES[kind.dtypes[2]],
        kind.scale,
        signs[0],
        signs[1],
        level,
    )
    back = tuple(storage.index(c) for c in out)
    return Prepared(call, packed, swapped, tuple(extents[c] for c in storage), back, prod(extents.values()))


def _copied(
    inputs: list[str], out: str, extents: dict[str, int], steps: list[dict[str, int]], kept_only: bool
) -> tuple[tuple[int, tuple[int, ...]], list[dict[str, int]], str] | None:
    """The smaller operand copied, so that it goes on by 1 where the other one does: which one and how its axes are
    turned, the steps then, and the index that goes along vectors; None if there is none then either."""
    sizes = [prod(extents[c] for c in letters) for letters in inputs]
    which = int(sizes[1] <= sizes[0])
    letters, now = inputs[which], steps[which]
    unit = next((c for c, s in steps[1 - which].items() if s == 1), None)
    order = sorted(letters, key=lambda c: (c == unit, -now.get(c, 0)))
    steps = [*steps]
    steps[which] = {c: s for c, s in _dense(order, extents).items() if extents[c] > 1}
    along = _along(out, extents, steps, kept_only)
    return None if along is None else ((which, tuple(letters.index(c) for c in order)), steps, along)


def _dense(order: Iterable[str], extents: dict[str, int]) -> dict[str, int]:
    """Strides of a tensor whose axes lie in that order, without gaps."""
    found: dict[str, int] = {}
    for c in reversed([*order]):
        found[c] = prod(extents[d] for d in found)
    return found


def _along(out: str, extents: dict[str, int], steps: list[dict[str, int]], kept_only: bool) -> str | None:
    """The index that goes along vectors: of the result, where one operand goes on by 1 and the other by 1 or not at
    all; or a summed one, where both go on by 1, unless only the result's may."""

    def fits(c: str) -> bool:
        found = [s.get(c, 0) for s in steps]
        return 1 in found and all(f in (0, 1) for f in found) and (c in out or (found == [1, 1] and not kept_only))

    fitting = sorted((c for c in extents if fits(c)), key=lambda c: extents[c])
    if out and out[-1] in fitting and extents[out[-1]] >= PREFERRED:
        return out[-1]
    kept = [c for c in fitting if c in out]
    if kept and (extents[kept[-1]] > SHORT or len(kept) == len(fitting)):
        return kept[-1]
    return fitting[-1] if fitting else None


def _nested(storage: list[str], summed: list[str], along: str, loops: dict[str, Loop]) -> tuple[list[Loop], ...]:
    """Outer loops, summed ones and those of a tile, from the outermost on; what can be one loop is one."""
    inner: list[str] = [along] if along in storage else []
    if inner and summed:
        size = loops[along][0]
        for c in sorted((c for c in storage if c != along), key=lambda c: max(loops[c][2:])):
            if size * loops[c][0] > TILE:
                break
            size *= loops[c][0]
            inner.insert(0, c)
    outer = [c for c in storage if c not in inner]
    if inner and not summed:  # one loop along all that lies in one piece
        outer, inner = [], storage
    merged = [_merged([loops[c] for c in group]) for group in (outer, summed, inner)]
    if inner and not summed:
        merged[0], merged[2] = merged[2][:-1], merged[2][-1:]
    return tuple(merged)


def _merged(loops: list[Loop]) -> list[Loop]:
    found: list[Loop] = []
    for extent, *strides in loops:
        if extent == 1 and len(loops) > 1:
            continue
        if found and all(s == extent * t for s, t in zip(found[-1][1:], strides, strict=True)):
            extent *= found.pop()[0]
        found.append((extent, strides[0], strides[1], strides[2]))
    return found
