"""What a kernel is started with: tile sizes, the number of programs, and numbers beside its tensors."""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from adaptc.codegen.lower import SHORT
from adaptc.codegen.tile import SPLITS, WHOLE, Dot, Fold, Kernel, Largest, Loop, System, every, has_tokens
from adaptc.codegen.triton_text import Places
from adaptc.ir.dims import TOKENS

Tiles = Mapping[str, int]


def names_of(kernel: Kernel) -> list[str]:
    """The tile sizes that a kernel asks for."""
    axes = [*kernel.grid, *(s.axis for s in every(kernel.body) if isinstance(s, Loop))]
    return sorted({a.tile for a in axes if a.tile})


def scalars_of(kernel: Kernel) -> list[str]:
    """The whole numbers that a kernel is given beside its tensors."""
    sizes = [a.extent for a in kernel.grid] + [s.axis.extent for s in every(kernel.body) if isinstance(s, Loop)]
    tokens = any(has_tokens(d) for d in [*sizes, *(d for b in kernel.buffers for d in b.shape)])
    split = any(a.extent == SPLITS for a in kernel.grid)
    parts = split or any(SPLITS in b.shape for b in kernel.buffers)
    return [*(["rows"] if tokens else []), *(["splits"] if parts else []), *(["part"] if split else [])]


def grid_text(kernel: Kernel, tiles: Tiles) -> str:
    """The number of programs, as text over `rows` and `splits`."""
    count = Places((None, None), {TOKENS: "rows", SPLITS: "splits"}).doprint
    parts = []
    for a in kernel.grid:
        size = str(count(sympy.sympify(a.extent)))
        if a.tile:
            size = (
                str(-(-a.extent // tiles[a.tile])) if isinstance(a.extent, int) else f"-(-({size}) // {tiles[a.tile]})"
            )
        parts.append(size)
    return " * ".join(f"({p})" if " " in p else p for p in parts) or "1"


def tiles_of(kernel: Kernel) -> dict[str, int]:
    """Tile sizes where none were measured."""
    axes = [*kernel.grid, *(s.axis for s in every(kernel.body) if isinstance(s, Loop) and s.axis.tile)]
    exact = any(isinstance(s, Dot) and s.a.dtype not in SHORT for s in every(kernel.body))
    dots = any(isinstance(s, (Dot, System, Largest)) for s in every(kernel.body))
    folded = any(isinstance(s, Fold) and s.columns for s in every(kernel.body))
    side = 32 if exact else 64
    most = {"R": side, "C": side, "K": side, "F": 1024} if dots or not folded else {"F": 16, "K": 256}
    most[WHOLE] = 1 << 20
    least = 16 if dots else 1
    found: dict[str, int] = {}
    for a in axes:
        if a.tile:
            size = a.extent if isinstance(a.extent, int) else 32 if a.extent == SPLITS else most[a.tile[0]]
            found[a.tile] = max(least, min(most[a.tile[0]], 1 << (max(size, 1) - 1).bit_length()))
    return found
