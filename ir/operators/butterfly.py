"""butterfly(R)."""

from __future__ import annotations

from random import Random
from typing import Any

from adaptc.errors import ShapeError
from adaptc.ir.build import contract, eye, permute, reshape, take, transpose_last
from adaptc.ir.dims import Dim, Shape, as_dim, quotient, same, show
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make
from adaptc.ir.prims import INDEX


class Butterfly(AbstractOperator):
    """BOFT's factors: the product, first stage rightmost, of P_i block_diag(R[i]) P_i^T.

    P_i = eye(k)[index_i]; index_i orders, inside each group of b 2^i consecutive indices, the sub-blocks of b/2:
    even-numbered ones first, then odd.
    Shapes: R (stages, k/b, b, b), b even -> (k, k); k must divide by b 2^(stages-1).
    apply: stage by stage on x, permutations as reshapes. Source: BOFT, arXiv:2311.06243, section 4.
    """

    R: Expr

    def infer(self) -> tuple[Shape, Kind]:
        s = self.R.dims
        if len(s) != 4 or not same(s[2], s[3]) or not isinstance(s[0], int) or not isinstance(s[2], int) or s[2] % 2:
            raise ShapeError(f"butterfly needs R (stages, k/b, b, b) with b even, got {show(s)}")
        k = as_dim(s[1] * s[2])
        quotient(k, s[2] * 2 ** (s[0] - 1))  # raises, naming both
        return (k, k), self.R.kind

    def as_matrix(self) -> Expr:
        return transpose_last(self.apply(eye(self.dims[0])))

    def apply(self, x: Expr) -> Expr:
        stages, _, _, _ = self.R.dims
        for i in range(int(stages)):
            x = self._stage(x, i)
        return x

    def _stage(self, x: Expr, i: int) -> Expr:
        """x (P B P^T)^T = x P B^T P^T. (x P)[:, c] = x[:, inverse index], which sends even, odd, even, ... back."""
        m, (_, count, b, _) = x.dims[0], self.R.dims
        groups, run = quotient(self.dims[0], int(b) * 2**i), 2**i
        block = take(self.R, (i + 0 * INDEX[0], *INDEX[:3]), (count, b, b))
        # P = eye[index]: (x P)[index[c]] = x[c], so position c = (half, run) of a group goes to (run, half)
        h = _move(x, m, (groups, 2, run, int(b) // 2), (0, 1, 3, 2, 4))
        h = reshape(contract("mgq,gpq->mgp", reshape(h, (m, count, b)), block), (m, self.dims[0]))
        return _move(h, m, (groups, run, 2, int(b) // 2), (0, 1, 3, 2, 4))

    @staticmethod
    def definition(xp: Any, R: Any) -> Any:
        stages, count, b, _ = R.shape
        k = count * b
        M = xp.eye(k, dtype=R.dtype)
        for i in range(stages):
            group = b * 2**i
            index = []
            for start in range(0, k, group):
                subs = [list(range(s, s + b // 2)) for s in range(start, start + group, b // 2)]
                index += [c for sub in subs[0::2] + subs[1::2] for c in sub]
            P = xp.eye(k, dtype=R.dtype)[index]
            M = P @ xp.block_diag(*R[i]) @ P.T @ M
        return M

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        fits = [(s, b) for b in (2, 4) for s in (1, 2, 3) if rows % (b * 2 ** (s - 1)) == 0]
        if rows != cols or not fits:
            return None
        stages, b = rng.choice(fits)
        return cls(make(stages, rows // b, b, b))


def _move(x: Expr, m: Dim, dims: tuple[Any, ...], order: tuple[int, ...]) -> Expr:
    return reshape(permute(reshape(x, (m, *dims)), order), x.dims)
