"""Values that a layer computes from its parameters alone, held from one call without gradients to the next."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.optim.optimizer import register_optimizer_step_post_hook

from adaptc.plan.hoist import MOST
from adaptc.runtime.program import Program, disturbed, run, run_rest
from adaptc.runtime.split import Split

PLAIN = (Tensor, nn.Parameter)
KINDS = ("cpu", "cuda")  # of devices whose order of work is known: a stream's, or the program's


class Steps:
    """When an optimizer last made a step: an object of its own each time. Not a number, which torch.compile would read,
    and compile the step again when it is another."""

    last: object = None


@functools.cache
def watch_optimizers() -> None:
    """Note every step of every optimizer from now on; some change parameters without counting a version."""
    register_optimizer_step_post_hook(_stepped)


def _stepped(optimizer: Any, args: Any, kwargs: Any) -> None:
    Steps.last = []


class Seen(NamedTuple):
    """A tensor as it was. alias: keeps its memory, so that no other tensor can come to lie there."""

    alias: Tensor
    address: int
    version: int

    @classmethod
    def of(cls, t: Tensor) -> Seen:
        """As it is now."""
        return cls(t.detach(), t.data_ptr(), t._version)

    def still(self, t: Tensor) -> bool:
        """Is a tensor, as far as torch tells, this one, with the values it had?"""
        return (
            trackable(t)
            and t.data_ptr() == self.address
            and t._version == self.version
            and t.dtype is self.alias.dtype
            and t.is_set_to(self.alias)
        )


def trackable(t: Tensor) -> bool:
    """Does torch count the changes of a tensor? Not of those made in inference mode."""
    return type(t) in PLAIN and not t.is_inference()


class Entry(NamedTuple):
    """Values, and what they hold for."""

    program: Program
    stream: int
    step: object
    seen: tuple[Seen, ...]
    values: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        """Numbers held."""
        return sum(v.numel() for v in self.values)

    def serves(self, program: Program) -> bool:
        """Are these values what a program needs?"""
        return program is self.program or split_of(program).alike(split_of(self.program))

    def holds(self, stream: int, tensors: Sequence[Tensor]) -> bool:
        """Are they those of these tensors, all that a layer has?"""
        if stream != self.stream or Steps.last is not self.step:
            return False
        return all(s.still(t) for s, t in zip(self.seen, split_of(self.program).given(tensors), strict=True))


def split_of(program: Program) -> Split:
    """The two functions of a program that has them."""
    assert program.split is not None
    return program.split


class Held:
    """The values of one layer, for the last kinds of call, as long as all of them together are within MOST of W.

    They are used only as long as every tensor they were computed from is in the same memory with the same version, and
    no optimizer has made a step.
    """

    __slots__ = ("entries",)

    def __init__(self) -> None:
        watch_optimizers()  # before a step for this layer may be compiled
        self.entries: tuple[Entry, ...] = ()

    def drop(self) -> None:
        """Forget them."""
        self.entries = ()

    def run(self, program: Program, x: Tensor, *tensors: Tensor) -> Tensor:
        """One call without autograd. A program for few tokens is one native call, whole: it has no split."""
        if program.split is None or watched(x):
            return run(program, x, *tensors)
        stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
        entries = self.entries  # read once: another thread may be here too
        entry = next((e for e in entries if e.serves(program) and e.holds(stream, tensors)), None)
        if entry is None:
            needs = program.split.given(tensors)
            if not all(map(trackable, needs)):
                return run(program, x, *tensors)
            entry = made(program, stream, needs)
            room = MOST * tensors[0].numel() - entry.size
            others = [e for e in entries if e.size <= room and e.holds(stream, tensors)]
            self.entries = (entry, *others[:1])
        return run_rest(program, entry.values, x, *tensors)

    def nbytes(self, others: Iterable[Tensor]) -> int:
        """Bytes that nothing but this holds. others: the tensors of the layer."""
        mine = [t.untyped_storage() for e in self.entries for t in (*e.values, *(s.alias for s in e.seen))]
        theirs = {t.untyped_storage().data_ptr() for t in others}
        return sum({s.data_ptr(): s.nbytes() for s in mine if s.data_ptr() not in theirs}.values())


def watched(x: Tensor) -> bool:
    """Is a call to be seen whole, by a mode, a tracer, forward differentiation or a graph capture?"""
    if disturbed() or x.device.type not in KINDS or forward_ad._current_level >= 0:
        return True
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


@torch.inference_mode(False)
@torch.no_grad()
def made(program: Program, stream: int, tensors: list[Tensor]) -> Entry:
    """The values for these tensors."""
    step, seen = Steps.last, tuple(map(Seen.of, tensors))  # before they are read
    return Entry(program, stream, step, seen, tuple(map(alone, program.parameters(*tensors))))


def alone(t: Tensor) -> Tensor:
    """The same values, not as part of a larger tensor."""
    return t.clone() if t.untyped_storage().nbytes() > t.nbytes else t
