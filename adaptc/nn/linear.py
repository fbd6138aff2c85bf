"""One linear layer with adapters."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptc.env import options
from adaptc.equation import Layer
from adaptc.errors import InjectError, MergeError, UnsupportedError
from adaptc.method import Adapter, Method
from adaptc.nn.base import STATISTICS, as_adapter, is_transposed, require_dropout, require_linear, require_name
from adaptc.nn.call import Ask, Mode, by_definition, fresh_seed, given_tensors, penalty_of, refuse, repeated
from adaptc.nn.hoisted import PLAIN, Held
from adaptc.nn.leaves import Leaves, Originals, shared_once
from adaptc.nn.saved import require_saved
from adaptc.plan.plan import NOMINAL, Plan
from adaptc.plan.plan import max_saved as limit
from adaptc.runtime import ops
from adaptc.runtime.attach import Wholes, attach
from adaptc.runtime.planning import FEW, bounds
from adaptc.runtime.program import Program, build, disturbed, kind_of, plan_at, run, weight_program
from adaptc.runtime.stack import Part, Stack, needs, stack
from adaptc.runtime.transformed import Transformed

if TYPE_CHECKING:
    from adaptc.nn.siblings import Siblings

HOOKS = tuple(
    f"_{kind}"
    for kind in (
        "forward_hooks",
        "forward_hooks_with_kwargs",
        "forward_hooks_always_called",
        "forward_pre_hooks",
        "forward_pre_hooks_with_kwargs",
        "backward_hooks",
        "backward_pre_hooks",
    )
)
NAMELESS = Layer("")
MADE = ("_programs", "_modes", "_sources", "_width", "_has_bias", "_late", "_bounds", "_rows", "_again", "_held")
"""What a layer makes again where it is loaded."""
ROUTES = ("plain", "many", "op")
route = "plain"
"""The way of a call on plain tensors: the fastest, as with many tokens, or through the registered operators; the tests
want them all."""


class AdaptedLinear(nn.Module):
    """y = x W'^T + b' for x (..., k), W' (n, k) the adapted weight of `base` (or y' for methods of the output form).

    base: an nn.Linear or transformers' Conv1D, whose parameters this module shows as its own: `weight` and `bias` stay
    where they were in the state dict, leaves are at `adapters.<name>.<leaf>`. dropout: of the adapter's x, while
    training: y = x W^T + b' + D(x) (W' - W)^T. layer: what a method is told that asks for `layer`; `inject` tells it
    the module's name. max_saved: the most that may be kept for backward, in bytes at 1,024 tokens or as "1.5x" of the
    bytes of x. y has x's dtype; products accumulate in float32 or wider.
    Raises: InjectError for a base that is no linear layer; the equation's own errors.
    """

    weight: Tensor
    bias: Tensor | None
    max_saved: str | int | None
    siblings: Siblings | None = None  # the layers that may be fed the same x

    def __init__(
        self,
        base: nn.Module,
        adapter: Adapter | Method,
        name: str = "default",
        dropout: float = 0.0,
        layer: Layer = NAMELESS,
        max_saved: str | int | None = None,
    ) -> None:
        nn.Module.__init__(self)
        require_linear(base, "the layer")
        self.max_saved = max_saved
        self._wrap(base)
        bound = as_adapter(adapter)
        equation = bound.trace(self.out_features, self.in_features, layer)
        wholes = Wholes()
        wholes.grow(equation)
        values = attach(equation, self.operand(), wholes, STATISTICS.get(base))
        self.add(name, Leaves(bound, equation, values), require_dropout(dropout))

    @classmethod
    def bare(cls, base: nn.Module) -> AdaptedLinear:
        """A wrapper with no adapter yet."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._wrap(base)
        return self

    def _wrap(self, base: nn.Module) -> None:
        """Take over what the base holds: its parameters, buffers and hooks are ours, it is no submodule."""
        object.__setattr__(self, "base", base)
        for held in ("_parameters", "_buffers", *HOOKS):
            self.__dict__[held] = base.__dict__[held]
        self.transposed, self.training = is_transposed(base), base.training
        self.adapters = nn.ModuleDict()
        self.dropouts: dict[str, float] = {}
        self.__dict__.setdefault("max_saved", None)
        self.disabled = 0
        self.given: dict[str, Any] = {}  # what `giving` gives, name -> tensor
        self._folded = False
        self.active = ()

    @property
    def in_features(self) -> int:
        """k."""
        return int(self.weight.shape[0 if self.transposed else 1])

    @property
    def out_features(self) -> int:
        """n."""
        return int(self.weight.shape[1 if self.transposed else 0])

    @property
    def merged(self) -> bool:
        """Are the adapters folded into the weight?"""
        return "originals" in self._modules or self._folded

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the adapters that are applied, in order."""
        return self._active

    @active.setter
    def active(self, names: tuple[str, ...]) -> None:
        parts = tuple(self._part(a) for a in names)
        modes = {training: self._mode(parts, training) for training in (False, True)}
        self._modes, self._active = modes, tuple(names)
        self._width, self._has_bias = self.in_features, self._base_has_bias()
        self._late = [a for a in names if self._leaves(a).waiting]
        self._sources = [source for a in names for source in self._leaves(a).sources()]
        self._programs: dict[Any, tuple[Program, bool]] = {}
        self._again: dict[tuple[bool, bool], Any] = {}
        self._held = Held()
        self._bounds, self._rows = bounds(self.out_features, self.in_features)

    def _base_has_bias(self) -> bool:
        """Does the base have a bias of its own? A merge may have added one."""
        if "originals" in self._modules:
            return self._originals().had_bias
        return self._parameters.get("bias") is not None

    def _part(self, name: str) -> Part:
        return self._leaves(name).equation, self.dropouts.get(name, 0.0)

    def _mode(self, parts: tuple[Part, ...], training: bool) -> Mode:
        n, k = self.out_features, self.in_features
        composed = stack(parts, n, k, self._base_has_bias(), training, limit(self.max_saved))
        return Mode(composed, ops.register(composed), composed.seeded, tuple(map(Ask.of, composed.given)))

    def add(self, name: str, leaves: Leaves, dropout: float = 0.0) -> None:
        """Put another adapter after those that are active."""
        parts = (*(self._part(a) for a in self.active), (leaves.equation, dropout))
        self._mode(parts, training=False)  # raises before anything changes
        n, k = self.out_features, self.in_features
        require_saved(parts, n, k, self._base_has_bias(), self.max_saved, self.weight.dtype)
        self.hold(name, leaves, dropout)
        self.active = (*self.active, name)

    def hold(self, name: str, leaves: Leaves, dropout: float = 0.0) -> None:
        """Take an adapter's leaves without activating it."""
        if name in self.adapters:
            raise InjectError(f"the layer has an adapter named '{name}' already: give this one another name")
        require_name(name)
        if self.merged:
            raise InjectError("the layer is merged: unmerge or unload it before adding an adapter")
        self.adapters[name] = leaves
        self.dropouts[name] = dropout

    def _leaves(self, name: str) -> Leaves:
        if name not in self.adapters:
            raise KeyError(f"no adapter named '{name}': this layer has {', '.join(self.adapters) or 'none'}")
        found = self.adapters[name]
        assert isinstance(found, Leaves)
        return found

    def leaves(self, name: str = "default") -> dict[str, Tensor]:
        """Leaf name -> tensor: trained leaves are the parameters themselves, shared ones whole, frozen ones too."""
        return self._leaves(name).values()

    def stack(self, training: bool = False) -> Stack:
        """The active adapters, composed."""
        return self._modes[training].stack

    def operand(self) -> Tensor:
        """W (n, k) as the base holds it now."""
        return self.weight.t() if self.transposed else self.weight

    def tensors(self) -> list[Tensor]:
        """W, the bias if there is one, then the leaves of the active adapters: a program's arguments after x."""
        weight, bias = self._parameters.get("weight"), self._parameters.get("bias")
        if weight is None:  # a parametrization holds it
            weight = self.weight  # type: ignore[assignment]
        if (bias is not None) != self._has_bias and not self.merged:
            self.active = self._active  # a bias was put on or taken off
        found = [weight.t() if self.transposed else weight]  # type: ignore[union-attr]
        if bias is not None:
            found.append(bias)
        for source in self._sources:
            found.append(source.holder[source.key] if source.cut is None else source.read())
        return found  # type: ignore[return-value]

    # ------------------------------------------------------------------ the forward

    def forward(self, input: Tensor, **given: Any) -> Tensor:  # noqa: A002 - nn.Linear's name
        """y (..., n) for input x (..., k). given: what an equation asks for with `given(..., at="call")`."""
        x = input
        alone = given or torch.compiler.is_compiling()
        y: Tensor | None = None if alone or self.siblings is None else self.siblings(self, x)
        if y is None and not (alone or self.disabled or disturbed() or route != "plain"):
            again = self._again.get((self.training, torch.is_grad_enabled()))
            y = again(x) if again is not None else None
        if y is not None:
            return y
        if self.disabled or not self._active or self.merged:
            return self._unadapted(x)
        if not isinstance(x, Tensor) or not x.is_floating_point() or not x.ndim or x.shape[-1] != self._width:
            refuse(x, self._width)
        kind = x.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(kind))
            with torch.autocast(kind, enabled=False):
                return self._adapted(x, given)
        return self._adapted(x, given)

    def _unadapted(self, x: Tensor) -> Tensor:
        weight, bias = self.operand(), self.bias
        if self.merged and self.disabled:
            originals = self._originals()
            weight, bias = originals.weight, originals.bias if originals.had_bias else None  # type: ignore[assignment]
            weight = weight.t() if self.transposed else weight
        return F.linear(x, weight, bias)

    def _adapted(self, x: Tensor, given: Mapping[str, Any]) -> Tensor:
        if self._late and not x.is_meta:
            self._need_weights()
        tensors = self.tensors()
        mode = self._modes[self.training]
        if mode.asks or given:
            tensors += given_tensors(mode.asks, x, given, self.given)
        if mode.seeded:
            tensors.append(fresh_seed(x.device))
        if type(x) not in PLAIN or route == "op" or torch.compiler.is_compiling():
            return self._through_op(mode, x, tensors)
        if options().backend == "reference":
            return by_definition(mode.stack, x, tensors)
        program, wants = self._program(mode, x, tensors)
        if torch._C._are_functorch_transforms_active():
            y: Tensor = Transformed.apply(program, x.reshape(-1, x.shape[-1]), *tensors)[0]  # type: ignore[no-untyped-call]
            return y.reshape(*x.shape[:-1], y.shape[-1])
        self._remember(program, wants, mode, x)
        if wants:
            return program.call(x, *tensors)
        own = self._parameters.get("weight") is not None  # a parametrization gives another in every call
        return self._held.run(program, x, *tensors) if own else run(program, x, *tensors)

    def _remember(self, program: Program, wants: bool, mode: Mode, x: Tensor) -> None:
        """Make the next call of this kind short, if nothing is needed for it but x and the tensors of the layer."""
        self._again.pop((self.training, torch.is_grad_enabled()), None)
        if mode.asks or mode.seeded or self.transposed or disturbed():
            return
        target = program.direct if wants else functools.partial(self._held.run, program)
        j = bisect_left(self._bounds, x.numel())
        entries = (self._bounds[j - 1] + 1 if j else 0, self._bounds[j])
        again = repeated(x, self._parameters, self._sources, target, entries)
        if again is not None:
            self._again[self.training, torch.is_grad_enabled()] = again

    def _program(self, mode: Mode, x: Tensor, tensors: list[Tensor]) -> tuple[Program, bool]:
        """What this kind of call runs, and whether anything wants a gradient."""
        grad = torch.is_grad_enabled()
        dtypes, flags = [t.dtype for t in tensors], [t.requires_grad for t in tensors]
        kind = kind_of(x)
        rows = self._rows[bisect_left(self._bounds, x.numel())] if route != "many" else NOMINAL
        key = (
            mode.name,
            grad,
            self.training,
            kind,
            rows,
            x.dtype,
            x.requires_grad,
            *dtypes,
            *flags,
            *map(type, tensors),
        )
        known = self._programs.get(key)
        if known is None:
            # In training a call without gradients gives what one with them does, as activation checkpointing wants.
            wants = [(grad or self.training) and t.requires_grad for t in (x, *tensors)]
            if rows == FEW and not all(type(t) in PLAIN for t in tensors):
                rows = NOMINAL
            signature = (tuple(ops.dtypes_of([x, *tensors])), tuple(wants))
            known = self._programs[key] = (build(mode.stack, signature, kind, rows), grad and True in wants)
        return known

    def _need_weights(self) -> None:
        """Raise while leaves have no values."""
        if self._late:
            raise UnsupportedError(
                f"'{self._late[0]}' was attached while the weight was on the meta device: load the weights, "
                "or call ac.reset(model) once they are there"
            )

    def train(self, mode: bool = True) -> AdaptedLinear:
        """As nn.Module's. What is held between calls without gradients is dropped."""
        self._held.drop()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> AdaptedLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.active = self._active  # leaves may have left, or reached, the meta device
        return self

    def _through_op(self, mode: Mode, x: Tensor, tensors: list[Tensor]) -> Tensor:
        """One call of the registered operator: what a compiler, an exporter or a tracer sees."""
        grad = torch.is_grad_enabled()
        which = ops.call_name(mode.name, [grad and t.requires_grad for t in (x, *tensors)])
        y: Tensor = torch.ops.adaptc.forward(x.reshape(-1, x.shape[-1]), tensors, which)[0]
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def penalty(self) -> Tensor | None:
        """The sum of the active adapters' penalties, differentiable, in float32 or wider; None without any."""
        composed = self.stack()
        if composed.penalty is None or self.disabled:
            return None
        return penalty_of(composed, self._unmerged_tensors())

    # ------------------------------------------------------------------ the adapted weight

    @torch.no_grad()
    def _weights(self) -> tuple[Tensor, Tensor]:
        self._need_weights()
        tensors = self._unmerged_tensors()
        composed = self.stack()
        if composed.weight is None or composed.bias is None:
            names = ", ".join(e.adapter.name for e in composed.equations if e.is_output_form)
            raise MergeError(f"{names} adapts the output, not the weight: there is no adapted weight to merge")
        missing = needs(composed, composed.weight, composed.bias)
        if missing:
            raise MergeError(f"the adapted weight depends on '{missing[0]}', which only a call has")
        kind = self.weight.device.type
        with torch.autocast(kind, enabled=False):
            program = weight_program(composed, tuple(ops.dtypes_of(tensors)), kind)
            weight, bias = program(*tensors)
        return weight, bias

    def _unmerged_tensors(self) -> list[Tensor]:
        tensors = self.tensors()
        if not self.merged:
            return tensors
        originals, leaves = self._originals(), tensors[-len(self._sources) :] if self._sources else []
        weight = originals.weight.t() if self.transposed else originals.weight  # type: ignore[operator]
        return [weight, *([originals.bias] if originals.had_bias else []), *leaves]  # type: ignore[list-item]

    def adapted_weight(self) -> Tensor:
        """W' (n, k) of all active adapters, in float32 or wider, without a gradient."""
        return self._weights()[0].clone()

    def delta_weight(self) -> Tensor:
        """W' - W, in float32 or wider, without a gradient."""
        weight = self._weights()[0]
        return weight - self._unmerged_tensors()[0].to(weight.dtype)

    def adapted_bias(self) -> Tensor | None:
        """bias' (n,) of all active adapters; None where neither the base nor an equation has one."""
        if self.bias is None and not self.stack().adds_bias:
            return None
        return self._weights()[1].clone()

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """What a merge would write, in the base's dtype. Raises MergeError if it is not finite."""
        weight, bias = self.adapted_weight().to(self.weight.dtype), self.adapted_bias()
        bias = None if bias is None else bias.to(self.weight.dtype)
        if not all(bool(torch.isfinite(t).all()) for t in (weight, bias) if t is not None):
            raise MergeError("the adapted weight is not finite")
        return weight, bias

    def merge(self, reversible: bool = True) -> None:
        """Fold the active adapters into the weight. reversible: keep the original, so that unmerge is exact to the bit.

        Raises: MergeError for methods of the output form, a weight that is not finite, a merged layer.
        """
        if self.merged:
            raise MergeError("the layer is merged already")
        self.fold(*self.folded(), reversible=reversible)

    @torch.no_grad()
    def fold(self, weight: Tensor, bias: Tensor | None, reversible: bool) -> None:
        """Write the folded weight."""
        self._again = {}
        self._held.drop()
        if reversible:
            self.originals = Originals(self.weight, self.bias, self.bias is not None)
        else:
            self._folded = True
        self.weight.copy_(weight.t() if self.transposed else weight)
        if bias is not None and self.bias is None:
            self._parameters["bias"] = nn.Parameter(bias, requires_grad=False)
        elif bias is not None and self.bias is not None:
            self.bias.copy_(bias)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the original weight back, bit for bit. Raises MergeError if it was not kept."""
        if not self.merged:
            raise MergeError("the layer is not merged")
        originals = self._originals()
        self._held.drop()
        self.weight.copy_(originals.weight)  # type: ignore[arg-type]
        if originals.had_bias:
            self.bias.copy_(originals.bias)  # type: ignore[union-attr, arg-type]
        else:
            self._parameters["bias"] = None
        del self._modules["originals"]

    def _originals(self) -> Originals:
        if "originals" not in self._modules:
            raise MergeError("the original weight was not kept (merged with reversible=False)")
        found = self._modules["originals"]
        assert isinstance(found, Originals)
        return found

    # ------------------------------------------------------------------ looking inside

    def plan(self, m: int = NOMINAL) -> Plan:
        """The plan of a training step of m tokens, in the weight's dtype, with the gradients that are wanted now.

        What is kept for backward is the same for every m. Few tokens have a plan of their own: one native call.
        """
        composed, tensors = self.stack(training=True), self.tensors()
        missing = len(composed.arguments) - 1 - len(tensors)
        wants = (True, *(t.requires_grad for t in tensors), *(False,) * missing)
        dtypes = (*ops.dtypes_of([self.weight, *tensors]), *("int64",) * missing)
        return plan_at(composed, (dtypes, wants), self.weight.device.type, m)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    # ------------------------------------------------------------------ weights that come later, and copies

    def renewed(self, name: str, wholes: Wholes, everything: bool) -> dict[str, Tensor]:
        """New initial values of an adapter's leaves from the present W: all, or those that come from W."""
        leaves = self._leaves(name)
        known = {} if everything else {n: v for n, v in leaves.values().items() if n not in leaves.derived}
        wholes.grow(leaves.equation)
        values = attach(leaves.equation, self.operand(), wholes, STATISTICS.get(self.__dict__["base"]), known)
        return values if everything else {n: v for n, v in values.items() if n in leaves.derived}

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, meta: Any, strict: bool, missing: Any, unexpected: Any, errors: list[str]
    ) -> None:
        """Base weights that come without leaves: what was computed from the old W is computed again."""
        if self.merged:
            raise MergeError("the layer is merged: unmerge it before loading a state dict")
        self._held.drop()
        comes, plain = f"{prefix}weight" in state_dict, not any(k.startswith(f"{prefix}adapters.") for k in state_dict)
        mine = [(name, self._leaves(name)) for name in self.adapters]
        for name, leaves in mine if comes and plain else ():
            if leaves.derived and not leaves.ahead and leaves.trained():
                errors.append(
                    f"'{prefix}adapters.{name}.{leaves.trained()[0]}' was trained on the old weight, and the file has "
                    "a new one: load adapter leaves with it, or call ac.reset(model) to start again"
                )
                return
        for _, leaves in mine:
            leaves._unnamed = comes and plain
        super()._load_from_state_dict(state_dict, prefix, meta, strict, missing, unexpected, errors)
        if not comes or self.weight.is_meta:
            return
        for name, leaves in mine:
            if leaves.waiting:
                values = self.renewed(name, leaves.group, everything=True)
                leaves.renew(shared_once(leaves.equation, values, leaves.group))
            elif leaves.derived and plain and not leaves.ahead:
                leaves.renew(self.renewed(name, Wholes(), everything=False))
            leaves.ahead = False
        self.active = self._active

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in MADE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.active = self._active


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """Every adapted layer with its name."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, AdaptedLinear))
