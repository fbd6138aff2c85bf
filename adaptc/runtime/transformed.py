"""A layer under torch.func's transforms: a Function in the form that they take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaptc.errors import UnsupportedError
from adaptc.ir.dims import TOKENS
from adaptc.runtime.program import Program

Dims = tuple[int | None, ...]


class Transformed(torch.autograd.Function):
    """(y, *kept) of x (m, k) and a program's other arguments, under grad and vmap."""

    @staticmethod
    def forward(program: Program, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.clone() for t in program.forward(x, *(tensors[j - 1] for j in program.read)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        program, x, *tensors = inputs
        ctx.program, ctx.count = program, len(tensors)
        ctx.mark_non_differentiable(*output[1:])
        first = (x,) if program.saves_x else ()
        ctx.save_for_backward(*first, *(tensors[j - 1] for j in program.saved), *output[1:])

    @staticmethod
    def backward(ctx: Any, gy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = [None] * (ctx.count + 1)
        if not ctx.program.wrt:
            return (None, *gradients)
        found = TransformedBackward.apply(ctx.program, gy, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        for position, g in zip(ctx.program.wrt, found, strict=True):
            gradients[position] = g
        return (None, *gradients)

    @staticmethod
    def vmap(info: Any, in_dims: Dims, program: Program, x: Tensor, *tensors: Tensor) -> Any:
        if program.by_row and in_dims[1] is not None and all(d is None for d in in_dims[2:]):
            return _more_tokens(info.batch_size, in_dims[1], program, x, tensors)
        return one_by_one(Transformed, info.batch_size, in_dims, (program, x, *tensors))


class TransformedBackward(torch.autograd.Function):
    """Gradients of (gy, *saved): not to be differentiated again."""

    @staticmethod
    def forward(program: Program, gy: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.clone() for t in program.backward(gy, *saved))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise UnsupportedError("an adapted layer cannot be differentiated twice: second derivatives are not supported")

    @staticmethod
    def vmap(info: Any, in_dims: Dims, program: Program, *tensors: Tensor) -> Any:
        return one_by_one(TransformedBackward, info.batch_size, in_dims, (program, *tensors))


def one_by_one(function: Any, size: int, in_dims: Dims, arguments: tuple[Any, ...]) -> tuple[Any, tuple[int, ...]]:
    """The batch as single calls, their results stacked."""
    runs = [
        function.apply(*(a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims, strict=True)))
        for i in range(size)
    ]
    stacked = tuple(torch.stack(results) for results in zip(*runs, strict=True))
    return stacked, (0,) * len(stacked)


def _more_tokens(size: int, dim: int, program: Program, x: Tensor, tensors: tuple[Tensor, ...]) -> Any:
    """A batch of x alone, as one call with more tokens."""
    rows = x.movedim(dim, 0)
    found = Transformed.apply(program, rows.reshape(-1, rows.shape[-1]), *tensors)  # type: ignore[no-untyped-call]
    by_token = [bool(dims) and dims[0] == TOKENS for dims in (program.plan.y.dims, *(d for d, _ in program.kept))]
    split = tuple(t.reshape(size, -1, *t.shape[1:]) if b else t for t, b in zip(found, by_token, strict=True))
    return split, tuple(0 if b else None for b in by_token)
