"""block_diag(A) of a stack, block_diag(A, B, ...) of unequal blocks."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.errors import ShapeError
from adaptc.ir.build import add, contract, put, reshape, take
from adaptc.ir.dims import Shape, as_dim, show
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make, divisors
from adaptc.ir.prims import INDEX


class BlockDiag(AbstractOperator):
    """Blocks along the diagonal, zeros elsewhere, as torch.block_diag.

    Shapes: a stack A (g, p, q) -> (g p, g q), or matrices A_i (p_i, q_i) -> (sum p_i, sum q_i).
    apply: each slice of x meets its own block.
    Raises: ShapeError unless there is one stack of matrices, or matrices. Source: OFT, arXiv:2306.07280.
    """

    blocks: tuple[Expr, ...]

    @classmethod
    def of(cls, *blocks: Expr) -> Expr:
        return cls(tuple(blocks))

    def infer(self) -> tuple[Shape, Kind]:
        shapes = [b.dims for b in self.blocks]
        if len(shapes) == 1 and len(shapes[0]) == 3:
            g, p, q = shapes[0]
            return (as_dim(g * p), as_dim(g * q)), self.blocks[0].kind
        if not shapes or any(len(s) != 2 for s in shapes):
            raise ShapeError(f"block_diag takes one stack (g, p, q) or matrices, got {' '.join(map(show, shapes))}")
        return (_sum(s[0] for s in shapes), _sum(s[1] for s in shapes)), self.blocks[0].kind

    def as_matrix(self) -> Expr:
        if self.blocks[0].ndim == 3:
            g, p, q = INDEX[:3]
            _, rows, cols = self.blocks[0].dims
            return put(self.blocks[0], (g * rows + p, g * cols + q), self.dims)
        placed, r, c = [], 0, 0
        for b in self.blocks:
            placed.append(put(b, (INDEX[0] + r, INDEX[1] + c), self.dims))
            r, c = r + b.dims[0], c + b.dims[1]
        return add(*placed)

    def apply(self, x: Expr) -> Expr:
        m = x.dims[0]
        if self.blocks[0].ndim == 3:
            g, p, q = self.blocks[0].dims
            y = contract("mgq,gpq->mgp", reshape(x, (m, g, q)), self.blocks[0])
            return reshape(y, (m, g * p))
        placed, r, c = [], 0, 0
        for b in self.blocks:
            part = take(x, (INDEX[0], INDEX[1] + c), (m, b.dims[1]))
            placed.append(put(contract("mq,pq->mp", part, b), (INDEX[0], INDEX[1] + r), (m, self.dims[0])))
            r, c = r + b.dims[0], c + b.dims[1]
        return add(*placed)

    @staticmethod
    def definition(xp: Any, blocks: tuple[Any, ...]) -> Any:
        return xp.block_diag(*(blocks[0] if blocks[0].ndim == 3 else blocks))

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        if rows > 1 and cols > 1 and rng.random() < 0.5:
            r, c = rng.randrange(1, rows), rng.randrange(1, cols)
            return cls((make(r, c), make(rows - r, cols - c)))
        g = rng.choice([d for d in divisors(rows) if cols % d == 0])
        return cls((make(g, rows // g, cols // g),))


def _sum(sizes: Any) -> Any:
    total = 0
    for s in sizes:
        total = total + s
    return as_dim(total)
