"""Sibling layers: layers of one module that are fed the same tensor compute their projections of it as one product.

Which they are is seen, not told. A call that finds an x which other layers had before it notes that they go together.
From the next forward on, the first of them computes the projections of all, and each of the others takes its share
when it is called with the very same tensor, unchanged, under the same circumstances; with any other it goes the
ordinary way. So does every call that something else than autograd looks into.

What is seen takes effect at once, but while calls may be computed again (under hooks for saved tensors, or in training
without gradients, as activation checkpointing makes them) only after the next step of an optimizer: a call and its
repetition compute the same.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from adaptc.env import options
from adaptc.nn import linear
from adaptc.nn.call import Mode
from adaptc.nn.hoisted import KINDS, PLAIN, Steps, trackable, watch_optimizers
from adaptc.nn.linear import AdaptedLinear, adapted_layers
from adaptc.runtime import ops
from adaptc.runtime.planning import FEW
from adaptc.runtime.program import Program, build, kind_of
from adaptc.runtime.siblings import Apart, Joint, apart, joint

_saved_hooks: Callable[[bool], Any] = torch._C._autograd._top_saved_tensors_default_hooks
_modes, _tracing = torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state
_transforms, _autocasts = torch._C._are_functorch_transforms_active, torch._C._is_any_autocast_enabled


class Fed(NamedTuple):
    """A tensor as it was fed to a layer, and what the call was made under."""

    x: weakref.ref[Tensor]
    place: tuple[Any, ...]
    version: int
    around: tuple[Any, ...]
    hooks: Callable[[], Any] | None

    @classmethod
    def of(cls, x: Tensor, gone: Callable[[Any], None] | None = None) -> Fed:
        """As it is now. gone: is called when x is no more."""
        hooks = _saved_hooks(True)
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), _modes()
        around = (x.requires_grad, *modes, *(_stream(x.device) if x.is_cuda else ()))
        place = (x.data_ptr(), x.dtype, x.shape, x.stride())
        return cls(weakref.ref(x, gone), place, x._version, around, None if hooks is None else _weak(hooks[0]))

    def same(self, x: Tensor, now: Fed) -> bool:
        """Is this call, of x, as that one was?"""
        if self.x() is not x or self[1:4] != now[1:4]:
            return False
        if self.hooks is None or now.hooks is None:
            return self.hooks is now.hooks
        return self.hooks() is not None and self.hooks() is now.hooks()


def _stream(device: torch.device) -> tuple[int, bool]:
    """Where work is put, and whether it is only recorded."""
    return torch.cuda.current_stream(device).cuda_stream, torch.cuda.is_current_stream_capturing()


def _weak(hook: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(hook)
    except TypeError:
        return lambda: None  # like no other


@dataclass
class Call:
    """A call of a layer, as far as it is known beforehand."""

    mode: Mode
    part: Apart
    tensors: list[Tensor]
    flags: list[Any]
    rows: int
    differentiable: bool

    @property
    def needs(self) -> list[Tensor]:
        """What the projections are computed from, beside x."""
        return [self.tensors[j - 1] for j in self.part.needs]


class Share(NamedTuple):
    """A layer's projections, and what they were computed from."""

    call: Call
    step: object
    needs: list[tuple[int, int]]  # addresses and versions
    projections: tuple[Tensor, ...]

    @classmethod
    def of(cls, call: Call, projections: tuple[Tensor, ...]) -> Share:
        """Of the tensors as they are now."""
        return cls(call, Steps.last, [(t.data_ptr(), t._version) for t in call.needs], projections)

    def fits(self, layer: AdaptedLinear) -> bool:
        """Is the layer as it was, and has nobody differentiated the projections yet?"""
        call, tensors = self.call, layer.tensors()
        if layer._modes[layer.training] is not call.mode or not ready(layer) or Steps.last is not self.step:
            return False
        if len(tensors) != len(call.tensors) or not all(map(same, tensors, call.tensors)):
            return False
        if _flags(tensors) != call.flags or any(getattr(p.grad_fn, "used", False) for p in self.projections):
            return False
        return all((t.data_ptr(), t._version) == was for t, was in zip(call.needs, self.needs, strict=True))


def _flags(tensors: list[Tensor]) -> list[Any]:
    return [(t.requires_grad, t.dtype) for t in tensors]


def _number(t: Tensor, known: list[Tensor]) -> int:
    """Which of the known tensors this is; a new one becomes known."""
    found = next((j for j, u in enumerate(known) if same(t, u)), len(known))
    if found == len(known):
        known.append(t)
    return found


def same(a: Tensor, b: Tensor) -> bool:
    """Are these one tensor, or the same part of one?"""
    return a is b or (a._base is not None and a._base is b._base and a.is_set_to(b))


@dataclass
class Entry:
    """What the first of some siblings computed for the others. life: of the graph that the projections are part of,
    through the first layer's y; without one they live no longer than x."""

    fed: Fed
    shares: dict[AdaptedLinear, Share]
    life: weakref.ref[Any] | None


class Siblings:
    """What the layers of one module that take rows of one length know of each other.

    They hold it, not it them. It is about calls, so that a copy, or one from a file, starts anew.
    """

    def __init__(self) -> None:
        watch_optimizers()
        self.together: weakref.WeakKeyDictionary[AdaptedLinear, list[weakref.ref[AdaptedLinear]]]
        self.together = weakref.WeakKeyDictionary()  # the first of some layers -> all of them
        self.joined: weakref.WeakKeyDictionary[AdaptedLinear, weakref.WeakSet[AdaptedLinear]]
        self.joined = weakref.WeakKeyDictionary()  # whose projections were last computed with a layer's
        self.seen: tuple[Fed, list[weakref.ref[AdaptedLinear]]] | None = None
        self.entry: Entry | None = None
        self.bound: object = self  # the optimizer's step in which calls were made that may be repeated
        self.programs: dict[Any, Any] = {}

    def __reduce__(self) -> Any:
        return Siblings, ()

    def __call__(self, layer: AdaptedLinear, x: Tensor) -> Tensor | None:
        """y; None where the layer is to go the ordinary way."""
        if not usual(x) or rows_of(layer, x) == FEW:
            return None
        now, entry = Fed.of(x), self.entry
        share = entry.shares.pop(layer, None) if entry is not None and entry.fed.same(x, now) else None
        self._see(layer, x, now)
        if share is None:
            return self._lead(layer, x)
        if entry is self.entry and entry is not None and not entry.shares:
            self.entry = None
        return self._rest(layer, x, share.call, share.projections) if share.fits(layer) else None

    def drop(self) -> None:
        """Forget what was computed for calls to come."""
        self.entry = None

    def nbytes(self, layer: AdaptedLinear) -> int:
        """Bytes held for a layer that was not called yet."""
        entry = self.entry
        share = entry.shares.get(layer) if entry is not None else None
        return sum(t.nbytes for t in share.projections) if share is not None else 0

    # ------------------------------------------------------------------ who goes together

    def _see(self, layer: AdaptedLinear, x: Tensor, now: Fed) -> None:
        """Note a call; one with another x, or of a layer that had this one, ends what was seen."""
        if self.seen is not None and self.seen[0].same(x, now) and all(m() is not layer for m in self.seen[1]):
            self.seen[1].append(weakref.ref(layer))
        else:
            if self.seen is not None and self.bound is not Steps.last:
                first = self.seen[1][0]()
                if first is not None:
                    self.together[first] = self.seen[1]
            self.seen = (now, [weakref.ref(layer)])
        if now.hooks is not None or (layer.training and not torch.is_grad_enabled()):
            self.bound = Steps.last

    # ------------------------------------------------------------------ one product for all

    def _lead(self, layer: AdaptedLinear, x: Tensor) -> Tensor | None:
        """Compute the projections of all that go with a layer, and its y."""
        members = [m for m in (ref() for ref in self.together.get(layer, ())) if m is not None]
        self.joined.pop(layer, None)
        if len(members) < 2:
            return None
        calls = self._calls(members, x)
        together = self._joint(list(calls.values())) if len(calls) > 1 and layer in calls else None
        if together is None:
            return None
        every = list(calls.values())
        tensors = [every[j].tensors[need - 1] for j, need in together.sources]
        found = dict(zip(calls, together(x, tensors, calls[layer].differentiable), strict=True))
        shares = {m: Share.of(call, found[m]) for m, call in calls.items() if m is not layer}
        y = self._rest(layer, x, calls[layer], found[layer])
        self._leave(x, y, shares, any(p.requires_grad for ps in found.values() for p in ps))
        self.joined[layer] = weakref.WeakSet(calls)
        return y

    def _calls(self, members: list[AdaptedLinear], x: Tensor) -> dict[AdaptedLinear, Call]:
        """The calls of those that can go with the first."""
        calls = {m: self._call(m, x) for m in members if m.siblings is self}
        first = calls.get(members[0])
        alike = first is not None and first.differentiable
        return {m: call for m, call in calls.items() if call is not None and call.differentiable is alike}

    def _leave(self, x: Tensor, y: Tensor, shares: dict[AdaptedLinear, Share], graph: bool) -> None:
        """Hold the others' shares while x, or the graph that they are part of, is alive."""
        if graph and y.grad_fn is None:
            return
        life = weakref.ref(y.grad_fn, self._gone) if graph else None
        self.entry = Entry(Fed.of(x, self._gone), shares, life)

    def _gone(self, ref: Any) -> None:
        entry = self.entry
        if entry is not None and (entry.fed.x is ref or entry.life is ref):
            self.entry = None

    def _joint(self, calls: list[Call]) -> Joint | None:
        """The program for these layers; None where it does not pay."""
        known: list[Tensor] = []
        numbers = tuple(tuple(_number(t, known) for t in call.needs) for call in calls)
        return joint(tuple(c.part for c in calls), numbers, calls[0].rows)

    def _call(self, layer: AdaptedLinear, x: Tensor) -> Call | None:
        """What a layer would be called with; None if it has no projections, or is not to be called as usual."""
        mode = layer._modes[layer.training]
        if not ready(layer) or x.shape[-1] != layer._width or mode.asks or mode.seeded:
            return None
        tensors, rows = layer.tensors(), rows_of(layer, x)
        if rows == FEW or not all(trackable(t) and t.device == x.device for t in tensors):
            return None
        grad, kind, flags = torch.is_grad_enabled(), kind_of(x), _flags(tensors)
        key = (mode.name, kind, grad or layer.training, x.requires_grad, x.dtype, *flags)
        if key not in self.programs:
            wants = tuple((grad or layer.training) and t.requires_grad for t in (x, *tensors))
            self.programs[key] = apart(mode.stack, (tuple(ops.dtypes_of([x, *tensors])), wants), kind)
        part = self.programs[key]
        differentiable = grad and (x.requires_grad or any(flag for flag, _ in flags))
        return None if part is None else Call(mode, part, tensors, flags, rows, differentiable)

    def _rest(self, layer: AdaptedLinear, x: Tensor, call: Call, projections: tuple[Tensor, ...]) -> Tensor:
        """y, given the projections."""
        key = (call.part, call.rows)
        program: Program | None = self.programs.get(key)
        if program is None:
            part = call.part
            program = self.programs[key] = build(part.rest, part.whole, part.device, call.rows)
        if call.differentiable:
            return program.direct(x, *call.tensors, *projections)
        return layer._held.run(program, x, *call.tensors, *projections)


def usual(x: Any) -> bool:
    """Is this a call that nothing looks into but autograd, of a tensor whose changes torch counts?"""
    if type(x) not in PLAIN or x.is_inference() or x.device.type not in KINDS or linear.route != "plain":
        return False
    if _transforms() or _autocasts() or _tracing() is not None or forward_ad._current_level >= 0:
        return False
    return x.ndim > 0 and x.is_floating_point() and options().backend != "reference"


def rows_of(layer: AdaptedLinear, x: Tensor) -> int:
    """The bucket of a call. One of few tokens is a native call, which goes alone."""
    return layer._rows[bisect_left(layer._bounds, x.numel())]


def ready(layer: AdaptedLinear) -> bool:
    """Does a layer apply its adapters, to a weight of its own?"""
    if layer.disabled or not layer.active or layer.merged or layer._late:
        return False
    return layer._parameters.get("weight") is not None


# ---------------------------------------------------------------------- on models


def fuse_siblings(model: nn.Module, on: bool = True) -> list[tuple[str, ...]]:
    """Let layers that are fed the same tensor (q, k, v; gate, up) compute their down-projections as one product, or
    no more. Returns the names of the layers that are watched together: those of one module with one length of rows.

    The numbers are those of the layers alone, up to rounding; files, state dicts and adapters are not affected. Which
    layers of a group are in fact fed one tensor is seen in the first forward, and `ac.summary` tells. A layer goes
    alone where its equation has no projection to few columns, keeps to a `max_saved`, is random or is given tensors by
    the call; under `torch.compile`, autocast and torch.func; and where no gain is predicted, as with few tokens.
    Between the calls of two siblings, `p.data.add_(...)` and `x.data.add_(...)` are not seen: `ac.refresh`.
    """
    groups: dict[tuple[str, int], dict[str, AdaptedLinear]] = {}
    for name, layer in adapted_layers(model):
        layer.siblings = None
        groups.setdefault((name.rpartition(".")[0], layer.in_features), {})[name] = layer
    found = [group for group in groups.values() if len(group) > 1]
    for group in found if on else ():
        siblings = Siblings()
        for layer in group.values():
            layer.siblings = siblings
    return [tuple(group) for group in found] if on else []


def companions(model: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """Of each layer, the names of those whose projections were last computed with its own."""
    names = {layer: name for name, layer in adapted_layers(model)}
    found: dict[AdaptedLinear, list[str]] = {layer: [] for layer in names}
    for layer in names:
        joined = layer.siblings.joined.get(layer, ()) if layer.siblings is not None else ()
        for one in joined:
            if one in found:
                found[one] = [names[other] for other in names if other in joined and other is not one]
    return ((names[layer], others) for layer, others in found.items())
