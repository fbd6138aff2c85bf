"""on_axes(T, dims, axes)."""

from __future__ import annotations

from random import Random
from string import ascii_letters
from typing import Any

from adaptc.errors import ShapeError
from adaptc.ir.build import contract, eye, reshape, transpose_last
from adaptc.ir.dims import Dim, Shape, as_dim, as_shape, product, same_shape, show
from adaptc.ir.expr import Expr, Kind
from adaptc.ir.operator import AbstractOperator, Make, divisors


class OnAxes(AbstractOperator):
    """T acts on some axes of the row-major index (dims[0], dims[1], ...), the identity on the rest.

    Shapes: T (p, p) with p the product of the dims of `axes`, in the order of `axes`, or a stack (others..., p, p)
    with one block per index of the other axes -> (D, D), D = prod(dims).
    Butterflies, RoAd, rotary turns, QuanTA's gates, kron(I, T) and kron(T, I) are instances.
    Raises: ShapeError naming T and what it should be. Source: QuanTA, arXiv:2406.00132.
    """

    T_: Expr
    grid: tuple[Dim, ...]
    axes: tuple[int, ...]

    @classmethod
    def of(cls, T: Expr, dims: Any, axes: Any) -> Expr:
        return cls(T, as_shape(tuple(dims)), tuple(axes))

    def infer(self) -> tuple[Shape, Kind]:
        p = product(tuple(self.grid[a] for a in self.axes))
        stack = (*self._others(), p, p)
        if not same_shape(self.T_.dims, (p, p)) and not same_shape(self.T_.dims, stack):
            raise ShapeError(f"on_axes: T is {show(self.T_.dims)}, wanted {show((p, p))} or {show(stack)}")
        D = product(self.grid)
        return (D, D), self.T_.kind

    def _others(self) -> Shape:
        return tuple(d for a, d in enumerate(self.grid) if a not in self.axes)

    def as_matrix(self) -> Expr:
        return transpose_last(self.apply(eye(self.dims[0])))  # I T^T, transposed

    def apply(self, x: Expr) -> Expr:
        m, count = x.dims[0], len(self.grid)
        inside = ascii_letters[:count]
        outside = list(inside)
        for j, a in enumerate(self.axes):
            outside[a] = ascii_letters[count + j]
        rows = "".join(outside[a] for a in self.axes)
        cols = "".join(inside[a] for a in self.axes)
        lead = "" if self.T_.ndim == 2 else "".join(c for a, c in enumerate(inside) if a not in self.axes)
        sizes = tuple(self.grid[a] for a in self.axes)
        others = () if self.T_.ndim == 2 else self._others()
        T = reshape(self.T_, (*others, *sizes, *sizes))
        spec = f"Z{inside},{lead}{rows}{cols}->Z{''.join(outside)}"
        return reshape(contract(spec, reshape(x, (m, *self.grid)), T), (m, as_dim(self.dims[0])))

    @staticmethod
    def definition(xp: Any, T: Any, dims: tuple[int, ...], axes: tuple[int, ...]) -> Any:
        others = [a for a in range(len(dims)) if a not in axes]
        D = 1
        for d in dims:
            D *= d
        index = xp.arange(D).reshape(dims).permute(*others, *axes).reshape(-1, T.shape[-1])  # (others, p)
        full = xp.zeros(D, D, dtype=T.dtype)
        blocks = T.reshape(-1, *T.shape[-2:]) if T.ndim > 2 else T.expand(len(index), *T.shape)
        for rows, block in zip(index, blocks, strict=True):
            full[rows[:, None], rows[None, :]] = block
        return full

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        if rows != cols:
            return None
        a = rng.choice(divisors(rows))
        b = rng.choice(divisors(rows // a))
        dims = (a, b, rows // a // b)
        axes = tuple(rng.sample(range(3), rng.choice((1, 2))))
        p = 1
        for j in axes:
            p *= dims[j]
        lead = tuple(d for j, d in enumerate(dims) if j not in axes) if rng.random() < 0.5 else ()
        return cls(make(*lead, p, p), dims, axes)
