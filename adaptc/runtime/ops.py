"""The two registered operators through which compiled, exported, traced and transformed calls go.

They are defined once, when this module is imported; a string says which program a call means: the composed equation's
digest and which tensors want gradients. So nothing is defined inside a call, and any pattern of gradients, of dropout
or of frozen leaves works under a trace. Dtypes are those of the tensors.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, library

from adaptc.errors import InternalError, UnsupportedError
from adaptc.ir.dims import TOKENS, Dim
from adaptc.runtime.planning import bucket
from adaptc.runtime.program import Program, build
from adaptc.runtime.stack import Stack

STACKS: dict[str, Stack] = {}
"""Composed equations by name: what a call's string refers to."""
LIBRARY: Any = library.Library("adaptc", "DEF")  # type: ignore[no-untyped-call]
LIBRARY.define("forward(Tensor x, Tensor[] tensors, str which) -> Tensor[]")
LIBRARY.define("backward(Tensor gy, Tensor[] saved, str which) -> Tensor[]")


def register(stack: Stack) -> str:
    """The name of a composed equation in calls. Done when adapters are attached, never inside a call."""
    name = "_then_".join(e.adapter.name for e in stack.equations) or "linear"
    name = f"{name}_{stack.n}x{stack.k}_{stack.digest}_{revision()}"
    STACKS[name] = stack
    return name


@functools.cache
def revision() -> str:
    """A digest of the compiler: torch keeps compiled graphs on disk, and one that another compiler had part in says
    otherwise what is saved."""
    package = Path(__file__).parents[1]
    files = (p for part in ("ir", "plan", "codegen", "runtime") for p in sorted((package / part).rglob("*.py")))
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()[:8]


def call_name(stack: str, wants: Sequence[bool]) -> str:
    """Which program a call means: the stack, and a 1 for every tensor that wants a gradient, x first."""
    return f"{stack}:{''.join('1' if w else '0' for w in wants)}"


def program(which: str, dtypes: Sequence[str], device: str, m: int | None = None) -> Program:
    """The program that a call means. m: tokens, where they are known; what it keeps does not depend on them."""
    name, _, flags = which.partition(":")
    if name not in STACKS:
        raise InternalError(f"no equation is registered as '{name}' in this process")
    stack = STACKS[name]
    signature = tuple(dtypes), tuple(f == "1" for f in flags)
    usual = build(stack, signature, device)
    found = usual if m is None else build(stack, signature, device, bucket(m, stack.n, stack.k))
    return found if (found.saves_x, found.saved) == (usual.saves_x, usual.saved) else usual  # a trace saves the usual


def dtypes_of(tensors: Sequence[Tensor]) -> list[str]:
    """Names of dtypes."""
    return [str(t.dtype).removeprefix("torch.") for t in tensors]


def rows_of(d: Dim, rows: Any) -> Any:
    """A size, with the number of tokens in place; it may be symbolic."""
    if isinstance(d, int):
        return d
    return eval(str(d), {str(TOKENS): rows})  # our own text


def _own(found: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Results as an operator must give them: contiguous, and no two tensors in one place."""
    taken = {t.untyped_storage().data_ptr() for t in inputs if t.numel()}
    out = []
    for t in found:
        t = t.contiguous()
        if t.numel() and t.untyped_storage().data_ptr() in taken:
            t = t.clone()
        taken.add(t.untyped_storage().data_ptr())
        out.append(t)
    return out


def _forward(x: Tensor, tensors: list[Tensor], which: str) -> list[Tensor]:
    p = program(which, dtypes_of([x, *tensors]), x.device.type, x.shape[0])
    return _own(p.forward(x, *(tensors[j - 1] for j in p.read)), [x, *tensors])


def _forward_fake(x: Tensor, tensors: list[Tensor], which: str) -> list[Tensor]:
    p = program(which, dtypes_of([x, *tensors]), x.device.type)
    rows = x.shape[0]
    kept = [x.new_empty([rows_of(d, rows) for d in dims], dtype=getattr(torch, dtype)) for dims, dtype in p.kept]
    return [x.new_empty([rows, p.plan.y.dims[-1]]), *kept]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, tensors, which = inputs
    p = program(which, dtypes_of([x, *tensors]), x.device.type)
    ctx.count, ctx.wrt = len(tensors), p.wrt
    ctx.which = f"{which}:{','.join(dtypes_of([x, *tensors]))}"
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    first = (x,) if p.saves_x else ()
    ctx.save_for_backward(*first, *(tensors[j - 1] for j in p.saved), *output[1:])


def _differentiate(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    gradients: list[Tensor | None] = [None] * (ctx.count + 1)
    if grads[0] is not None and ctx.wrt:
        found = torch.ops.adaptc.backward(grads[0], list(ctx.saved_tensors), ctx.which)
        for position, g in zip(ctx.wrt, found, strict=True):
            gradients[position] = g
    return gradients[0], gradients[1:], None


def _backward(gy: Tensor, saved: list[Tensor], which: str) -> list[Tensor]:
    which, _, dtypes = which.rpartition(":")
    p = program(which, dtypes.split(","), gy.device.type, gy.shape[0])
    return _own(p.backward(gy, *saved), [gy, *saved])


def _backward_fake(gy: Tensor, saved: list[Tensor], which: str) -> list[Tensor]:
    which, _, dtypes = which.rpartition(":")
    p = program(which, dtypes.split(","), gy.device.type)
    names, arguments = dtypes.split(","), STACKS[which.partition(":")[0]].arguments
    return [
        gy.new_empty([rows_of(d, gy.shape[0]) for d in arguments[j].dims], dtype=getattr(torch, names[j]))
        for j in p.wrt
    ]


def _refuse(ctx: Any, grads: Any) -> Any:
    raise UnsupportedError("an adapted layer cannot be differentiated twice: second derivatives are not supported")


def _plain(x: Tensor, tensors: list[Tensor], which: str) -> list[Tensor]:
    """Under autocast: x as autocast has it, the parameters as they are."""
    if x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    with torch.autocast(x.device.type, enabled=False):
        found: list[Tensor] = torch.ops.adaptc.forward(x, tensors, which)
    return found


LIBRARY.impl("forward", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("backward", _backward, "CompositeExplicitAutograd")
LIBRARY.impl("forward", _plain, "AutocastCPU")
LIBRARY.impl("forward", _plain, "AutocastCUDA")
library.register_fake("adaptc::forward", _forward_fake, lib=LIBRARY)
library.register_fake("adaptc::backward", _backward_fake, lib=LIBRARY)
library.register_autograd("adaptc::forward", _differentiate, setup_context=_setup, lib=LIBRARY)
library.register_autograd("adaptc::backward", _refuse, lib=LIBRARY)
