"""What a kernel is started with: tile sizes, the number of programs, and numbers beside its tensors."""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from adaptc.codegen.lower import SHORT
from adaptc.codegen.tile import SPLITS, WHOLE, Dot, Fold, Kernel, Largest, Loop, System, every, has_tokens
from adaptc.codegen.triton_text import Places
from adaptc.ir.dims import TOKENS

Tiles = Mapping[str, int]
LEAST = 16  # rows, columns and terms of a product of tiles
LONG = 512  # rows and columns of a product that is worth tiles of twice the size
PARTS = 32  # parts of a sum that are added at a time


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
    dots = any(isinstance(s, (Dot, System, Largest)) for s in every(kernel.body))
    most, least = _most(kernel, dots), LEAST if dots else 1
    found: dict[str, int] = {}
    for a in axes:
        if a.tile:
            size = a.extent if isinstance(a.extent, int) else PARTS if a.extent == SPLITS else most[a.tile[0]]
            found[a.tile] = max(least, min(most[a.tile[0]], 1 << (max(size, 1) - 1).bit_length()))
    return found


def _most(kernel: Kernel, dots: bool) -> dict[str, int]:
    """The largest tile size along each kind of variable."""
    found = [s for s in every(kernel.body) if isinstance(s, Dot)]
    exact = any(s.a.dtype not in SHORT for s in found)
    sides = [a for a in kernel.grid if a.tile in ("R", "C")]
    wide = found and not exact and all(not isinstance(a.extent, int) or a.extent >= LONG for a in sides)
    side = 32 if exact else 128 if wide else 64
    if dots:
        return {"R": side, "C": side, "K": min(side, 64), "F": min(side, 64), WHOLE: 1 << 20}
    folded = any(isinstance(s, Fold) and s.columns for s in every(kernel.body))
    return {"F": 16, "K": 256} if folded else {"F": 1024, "K": 64, "R": 8, "C": 128}


def warps_of(tiles: Tiles) -> int:
    """Warps of a program."""
    return 8 if tiles.get("R", 1) * tiles.get("C", 1) >= 128 * 128 else 4
