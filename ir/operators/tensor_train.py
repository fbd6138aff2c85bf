"""tensor_train(cores)."""

from __future__ import annotations

from random import Random
from string import ascii_letters
from typing import Any

from adaptc.errors import ShapeError
from adaptc.ir.build import contract, reshape
from adaptc.ir.dims import Shape, product, same, show
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make, divisors


class TensorTrain(AbstractOperator):
    """A matrix in tensor-train form, row-major.

    Shapes: core i (r_(i-1), p_i, q_i, r_i), r_0 = r_last = 1 -> (prod p, prod q).
    apply: one core after another on the axes of x. Source: LoRETTA, arXiv:2402.11417.
    """

    cores: tuple[Expr, ...]

    @classmethod
    def of(cls, cores: Any) -> Expr:
        return cls(tuple(cores))

    def infer(self) -> tuple[Shape, Kind]:
        shapes = [c.dims for c in self.cores]
        if not shapes or any(len(s) != 4 for s in shapes) or shapes[0][0] != 1 or shapes[-1][3] != 1:
            raise ShapeError(
                f"tensor_train needs cores (r, p, q, r') from rank 1 to 1, got {' '.join(map(show, shapes))}"
            )
        for left, right in zip(shapes, shapes[1:], strict=False):
            if not same(left[3], right[0]):
                raise ShapeError(
                    f"tensor_train: cores {show(left)} and {show(right)} do not meet: {left[3]} is not {right[0]}"
                )
        return (
            product(tuple(s[1] for s in shapes)),
            product(tuple(s[2] for s in shapes)),
        ), self.cores[0].kind

    def _letters(self) -> tuple[str, str, str]:
        t = len(self.cores)
        return ascii_letters[:t], ascii_letters[t : 2 * t], ascii_letters[2 * t : 3 * t + 1]

    def as_matrix(self) -> Expr:
        p, q, r = self._letters()
        terms = ",".join(f"{r[i]}{p[i]}{q[i]}{r[i + 1]}" for i in range(len(self.cores)))
        return reshape(contract(f"{terms}->{p}{q}", *self.cores), self.dims)

    def apply(self, x: Expr) -> Expr:
        p, q, r = self._letters()
        terms = ",".join(f"{r[i]}{p[i]}{q[i]}{r[i + 1]}" for i in range(len(self.cores)))
        tiles = reshape(x, (x.dims[0], *(c.dims[2] for c in self.cores)))
        return reshape(contract(f"Z{q},{terms}->Z{p}", tiles, *self.cores), (x.dims[0], self.dims[0]))

    @staticmethod
    def definition(xp: Any, cores: tuple[Any, ...]) -> Any:
        M = cores[0][0]  # (P, Q, r)
        for core in cores[1:]:
            M = xp.einsum("pqr,rstu->psqtu", M, core)
            M = M.reshape(M.shape[0] * M.shape[1], M.shape[2] * M.shape[3], M.shape[4])
        return M[..., 0]

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        p, q, r = rng.choice(divisors(rows)), rng.choice(divisors(cols)), rng.choice((1, 2))
        return cls((make(1, p, q, r), make(r, rows // p, cols // q, 1)))
