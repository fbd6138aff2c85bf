"""One linear layer with adapters."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._C._dynamo import eval_frame
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from adaptc.env import options
from adaptc.errors import DtypeError, InjectError, MergeError, ShapeError, UnsupportedError
from adaptc.method import Adapter, Method
from adaptc.nn.leaves import Leaves, Originals
from adaptc.plan.plan import NOMINAL, Plan
from adaptc.plan.search import plan
from adaptc.runtime.attach import Wholes, attach
from adaptc.runtime.program import Apply, Program, build, run, task_of, weight_program
from adaptc.runtime.reference import Evaluator
from adaptc.runtime.stack import Stack, stack

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


def as_adapter(adapter: Adapter | Method) -> Adapter:
    """A method stands for itself with its defaults."""
    if isinstance(adapter, Method):
        return adapter()
    if not isinstance(adapter, Adapter):
        raise TypeError(f"not an adapter: {adapter!r}; declare it with @adaptc.adapter and call it")
    return adapter


class AdaptedLinear(nn.Module):
    """y = x W'^T + b' for x (..., k), W' (n, k) the adapted weight of `base` (or y' for methods of the output form).

    base: an nn.Linear, whose parameters this module shows as its own: `weight` and `bias` stay where they were in the
    state dict, leaves are at `adapters.<name>.<leaf>`. y has x's dtype; products accumulate in float32 or wider.
    Raises: InjectError for a base that is no linear layer; the equation's own errors.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        base: nn.Module,
        adapter: Adapter | Method,
        name: str = "default",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_linear(base, "the layer")
        require_no_dropout(dropout)
        self._wrap(base)
        bound = as_adapter(adapter)
        equation = bound.trace(self.out_features, self.in_features)
        wholes = Wholes()
        wholes.grow(equation)
        self.add(name, Leaves(bound, equation, attach(equation, self.weight, wholes)))

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
        self.adapters = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        self.disabled = 0
        self._programs: dict[Any, Program] = {}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self.merged:
            raise MergeError("the layer is merged: unmerge it before loading a state dict")
        super()._load_from_state_dict(*args, **kwargs)

    @property
    def in_features(self) -> int:
        """k."""
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        """n."""
        return int(self.weight.shape[0])

    @property
    def merged(self) -> bool:
        """Are the adapters folded into the weight?"""
        return "originals" in self._modules or self.__dict__.get("_folded", False)

    def add(self, name: str, leaves: Leaves) -> None:
        """Put another adapter after those that are active."""
        adapters = (*(self._leaves(a).adapter for a in self.active), leaves.adapter)
        stack(adapters, self.out_features, self.in_features, self.bias is not None)  # raises before anything changes
        self.hold(name, leaves)
        self.active = (*self.active, name)

    def hold(self, name: str, leaves: Leaves) -> None:
        """Take an adapter's leaves without activating it."""
        if name in self.adapters:
            raise InjectError(f"the layer has an adapter named '{name}' already: give this one another name")
        require_name(name)
        if self.merged:
            raise InjectError("the layer is merged: unmerge or unload it before adding an adapter")
        self.adapters[name] = leaves

    def _leaves(self, name: str) -> Leaves:
        if name not in self.adapters:
            raise KeyError(f"no adapter named '{name}': this layer has {', '.join(self.adapters) or 'none'}")
        found = self.adapters[name]
        assert isinstance(found, Leaves)
        return found

    def leaves(self, name: str = "default") -> dict[str, Tensor]:
        """Leaf name -> tensor: trained leaves are the parameters themselves, shared ones whole, frozen ones too."""
        return self._leaves(name).values()

    def stack(self) -> Stack:
        """The active adapters, composed."""
        adapters = tuple(self._leaves(a).adapter for a in self.active)
        return stack(adapters, self.out_features, self.in_features, self.bias is not None)

    def tensors(self) -> list[Tensor]:
        """W, the bias if there is one, then the leaves of the active adapters: a program's arguments after x."""
        found = [self.weight] if self.bias is None else [self.weight, self.bias]
        for name in self.active:
            found += self._leaves(name).tensors()
        return found

    def forward(self, x: Tensor) -> Tensor:
        if self.merged and self.disabled:
            originals = self._originals()
            return F.linear(x, originals.weight, originals.bias if originals.had_bias else None)  # type: ignore[arg-type]
        if self.disabled or self.merged or not self.active:
            return F.linear(x, self.weight, self.bias)
        if not isinstance(x, Tensor) or not x.is_floating_point() or not x.ndim or x.shape[-1] != self.weight.shape[1]:
            self._refuse(x)
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(x.device.type))
            with torch.autocast(x.device.type, enabled=False):
                return self._adapted(x)
        return self._adapted(x)

    def _refuse(self, x: Any) -> NoReturn:
        """Say what is wrong with x."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise DtypeError(f"x must be real floating point, got {x.dtype}; the weight is {self.weight.dtype}")
        if not x.ndim:
            raise ShapeError(f"x must have rows of {self.in_features}, got a scalar")
        raise ShapeError(f"x has rows of {x.shape[-1]}, the layer takes {self.in_features}")

    def _adapted(self, x: Tensor) -> Tensor:
        tensors = self.tensors()
        if options().backend == "reference":
            return self._reference(x, tensors)
        grad = torch.is_grad_enabled()
        wants = tuple(grad and t.requires_grad for t in (x, *tensors))
        key = (self.active, x.device.type, wants, x.dtype, *(t.dtype for t in tensors))
        program = self._programs.get(key)
        if program is None:
            dtypes = tuple(str(t.dtype).removeprefix("torch.") for t in (x, *tensors))
            program = build(self.stack(), (dtypes, wants), _device(x.device.type))
            self._programs[key] = program
        if not any(wants):
            return run(program, x, tensors)
        y: Tensor = Apply.apply(program, x, *tensors)  # type: ignore[no-untyped-call]
        return y

    def _reference(self, x: Tensor, tensors: list[Tensor]) -> Tensor:
        composed, rows = self.stack(), x.reshape(-1, x.shape[-1])
        wide = torch.promote_types(torch.float32, x.dtype)
        values = [t.to(wide) if t.is_floating_point() else t for t in (rows, *tensors)]
        evaluate = Evaluator(dict(zip(composed.arguments, values, strict=True)), wide, rows=len(rows))
        return evaluate(composed.output).to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    # ------------------------------------------------------------------ the adapted weight

    @torch.no_grad()
    def _weights(self) -> tuple[Tensor, Tensor]:
        composed = self.stack()
        if composed.weight is None:
            names = ", ".join(e.adapter.name for e in composed.equations if e.is_output_form)
            raise MergeError(f"{names} adapts the output, not the weight: there is no adapted weight to merge")
        tensors = self._unmerged_tensors()
        dtypes = tuple(str(t.dtype).removeprefix("torch.") for t in tensors)
        kind = self.weight.device.type
        with torch.autocast(kind, enabled=False):
            weight, bias = weight_program(composed, dtypes, _device(kind))(*tensors)
        return weight, bias

    def _unmerged_tensors(self) -> list[Tensor]:
        tensors = self.tensors()
        if self.merged:
            originals = self._originals()
            tensors[0] = originals.weight  # type: ignore[assignment]
            if self.bias is not None:
                tensors[1] = originals.bias  # type: ignore[assignment]
        return tensors

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
        if reversible:
            self.originals = Originals(self.weight, self.bias, self.bias is not None)
        else:
            self._folded = True
        self.weight.copy_(weight)
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
        """The plan of a training step with the gradients that are wanted now. It is the same for every m."""
        wants = (True, *(t.requires_grad for t in self.tensors()))
        return plan(task_of(self.stack(), wants, _device(self.weight.device.type)))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_programs": {}}  # compiled again where it is loaded


def _outside_compiled_graphs(method: Any) -> None:
    """Let torch.compile break its graph here and run the call, with all that it calls, as it is.

    What torch.compiler.disable does, without its import of dynamo, which takes longer than torch itself.
    """
    method._torchdynamo_disable = True
    eval_frame.set_code_exec_strategy(method.__code__, eval_frame._FrameExecStrategy(SKIP, SKIP))


SKIP = eval_frame._FrameAction.SKIP
_outside_compiled_graphs(AdaptedLinear._adapted)


def _device(kind: str) -> str:
    return "h200" if kind == "cuda" else "cpu"


def require_name(name: str) -> None:
    """Refuse a name that cannot stand in a state-dict key."""
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise InjectError(f"'{name}' cannot name an adapter: use an identifier that nn.ModuleDict does not use itself")


def require_no_dropout(dropout: float) -> None:
    """Refuse what is not there yet, rather than ignore it."""
    if dropout:
        raise UnsupportedError(f"dropout {dropout} on the adapter's branch is not available yet: use 0.0")


def require_linear(module: nn.Module, where: str) -> None:
    """Raise unless a module is a linear layer over a floating-point matrix."""
    if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward:
        raise InjectError(
            f"{where} is a {type(module).__name__} with a forward of its own, which an adapter would replace"
        )
    if isinstance(module, AdaptedLinear) or not isinstance(module, nn.Linear):
        raise InjectError(f"{where} is a {type(module).__name__}, not an nn.Linear")
    weight = module._parameters.get("weight")
    if weight is None or is_lazy(weight) or not weight.is_floating_point() or weight.is_meta:
        raise InjectError(f"the weight of {where} is not a floating-point parameter in memory")
