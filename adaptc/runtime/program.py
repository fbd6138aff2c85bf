"""A plan as two callables, forward and backward, and the autograd node that joins them.

Backward runs derived expressions; it never calls torch autograd. What passes from forward to backward goes through
`save_for_backward`: x as it came, the leaves, and what the plan keeps. A second derivative raises.
"""

from __future__ import annotations

import functools
import linecache
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptc.codegen.aten import argument_names, emit
from adaptc.codegen.native import Kernels
from adaptc.codegen.source import Source
from adaptc.codegen.strided import DTYPES as STRIDED
from adaptc.codegen.strided import NotStrided, emit_strided, may_be_strided
from adaptc.codegen.tiled import emit_tiled
from adaptc.codegen.types import Types, has_rows, wide
from adaptc.env import options
from adaptc.errors import UnsupportedError
from adaptc.ir.check import check
from adaptc.ir.dims import TOKENS, Shape, show
from adaptc.ir.expr import Expr, postorder
from adaptc.ir.prims import Leaf
from adaptc.ir.printer import brief, formula
from adaptc.plan import device as devices
from adaptc.plan.plan import NOMINAL, Plan, Task, depends_on_tokens
from adaptc.plan.search import plan
from adaptc.runtime import native
from adaptc.runtime.copies import reshape as native_reshape
from adaptc.runtime.generated import GAIN, generates, guarded, load_file
from adaptc.runtime.planning import FEW, OBSERVED, PRODUCTS, Signature, bucket, few_rows, planned, planned_as
from adaptc.runtime.products import product as native_product
from adaptc.runtime.random import bernoulli, uniform
from adaptc.runtime.sampled import sampled, scattered
from adaptc.runtime.solves import solve as native_solve
from adaptc.runtime.split import Split, split
from adaptc.runtime.stack import Stack
from adaptc.runtime.tables import tabulate
from adaptc.runtime.transforms import fft, half_fft, half_ifft, ifft, real_fft, real_ifft, walsh_hadamard

AHEAD = 8  # times the products of x W^T: what one native call may compute, forward and backward


@dataclass(frozen=True)
class Program:
    """forward(x, *tensors) -> (y, *kept); backward(gy, x, *inputs, *kept) -> gradients of `wrt`."""

    plan: Plan
    count: int  # arguments, x among them
    forward_source: Source
    backward_source: Source | None
    read: tuple[int, ...]  # arguments beside x that the forward reads
    saved: tuple[int, ...]  # arguments beside x that the backward reads
    wrt: tuple[int, ...]  # arguments with a gradient, in the order the backward gives them
    saves_x: bool
    kept: tuple[tuple[Shape, str], ...] = ()  # sizes and dtypes of what passes from forward to backward
    by_row: bool = False  # is a row of y, and of what is kept, a function of its row of x and the parameters alone?
    split: Split | None = None  # the forward in two, where values may be held between calls without gradients

    @functools.cached_property
    def node(self) -> type[torch.autograd.Function] | None:
        """The autograd node; None where no gradient reaches what wants one."""
        return joined(self) if self.wrt else None

    @property
    def call(self) -> Callable[..., Tensor]:
        """(x, *tensors) -> y as an autograd node of x (..., k)."""
        return self.node.apply if self.node else functools.partial(_constant, self)

    @property
    def direct(self) -> Callable[..., Tensor]:
        """`call`, where it is known that no torch.func transform is active."""
        return super(torch.autograd.Function, self.node).apply if self.node else self.call  # type: ignore[misc]

    @functools.cached_property
    def forward(self) -> Callable[..., tuple[Tensor, ...]]:
        """The compiled forward."""
        return load(self.forward_source)

    @functools.cached_property
    def parameters(self) -> Callable[..., tuple[Tensor, ...]]:
        """The compiled first part of the split."""
        assert self.split is not None
        return load(self.split.parameters_source)

    @functools.cached_property
    def rest(self) -> Callable[..., tuple[Tensor, ...]]:
        """The compiled second part of the split."""
        assert self.split is not None
        return load(self.split.forward_source)

    @functools.cached_property
    def backward(self) -> Callable[..., tuple[Tensor, ...]]:
        """The compiled backward."""
        assert self.backward_source is not None
        return load(self.backward_source)


def load(source: Source) -> Callable[..., tuple[Tensor, ...]]:
    """The generated function, its text known to tracebacks; tables are built once per device."""
    filename = f"<adaptc {source.name} {source.digest}>"
    linecache.cache[filename] = (len(source.text), None, source.text.splitlines(True), filename)
    if options().debug >= 4:
        print(source.text)
    namespace: dict[str, Any] = {
        "torch": torch,
        "linear": torch.nn.functional.linear,
        "fft": fft,
        "ifft": ifft,
        "half_fft": half_fft,
        "half_ifft": half_ifft,
        "real_fft": real_fft,
        "real_ifft": real_ifft,
        "walsh_hadamard": walsh_hadamard,
        "native": native,
        "native_product": native_product,
        "native_reshape": native_reshape,
        "native_solve": native_solve,
        "empty_like": torch.empty_like,
        "straight": native.straight,
        "steps": native.steps(source.strided) if source.strided else None,
        "together": [native.together(s) for s in source.together],
        "sampled": sampled,
        "scattered": scattered,
        "uniform": uniform,
        "bernoulli": bernoulli,
    }
    if source.kernels:
        module = load_file(source)
        vars(module).update({**namespace, **vars(module)})
        function = guarded(getattr(module, source.name))
    else:
        exec(compile(source.text, filename, "exec"), namespace)  # our own text
        function = namespace[source.name]
    if source.strided:
        return function
    if not source.tables:
        return functools.partial(function, ())
    tables: dict[torch.device, tuple[Tensor, ...]] = {}

    def run(first: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        device = first.device
        if device not in tables:
            tables[device] = tuple(tabulate(t, device) for t in source.tables)
        result: tuple[Tensor, ...] = function(tables[device], first, *rest)
        return result

    return run


def kind_of(x: Tensor) -> str:
    """The kind of device of a call; a call that something watches, or traces, must be torch operations alone."""
    watched = _modes() > 0 or _tracing() is not None
    return OBSERVED + x.device.type if watched else x.device.type


_modes, _tracing = torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state
_transforms, _autocasts = torch._C._are_functorch_transforms_active, torch._C._is_any_autocast_enabled


def disturbed() -> bool:
    """Does anything around a call change what it is to do: a dispatch mode, a tracer, a transform, autocast?"""
    return _modes() > 0 or _transforms() or _autocasts() or _tracing() is not None


def kernels(device: str) -> Kernels | None:
    """The compiled kernels that a kind of device has. Asking says once, visibly, if they are missing."""
    if device != "cpu":
        return None
    ready = native.ready
    return Kernels(
        blocks=lambda p, q, dtype: ready() and native.pays(p, q, getattr(torch, dtype)),
        ready=ready,
        together=lambda: ready() and native.looks(),
    )


@functools.lru_cache(maxsize=1024)
def build(stack: Stack, signature: Signature, device: str, rows: int = NOMINAL) -> Program:
    """Plan and compile one kind of call on a kind of device, as torch names it. Layers of one shape share it.

    rows: of the `bucket` of the number of tokens. Few on a CPU are computed by one native call, if they can be.
    """
    start = time.perf_counter()
    if rows == FEW:
        found = _built_for_few(stack, signature) if device == "cpu" and not generates(device) else None
        return found or build(stack, signature, device, bucket(few_rows(stack.n, stack.k), 1, 1))
    chosen = planned(stack, signature, device, rows)
    _tell(chosen, stack)
    program = assemble(chosen, stack, signature[0], kernels(device), generated=generates(device))
    if options().debug:
        print(f"adaptc: built {_title(stack)} in {time.perf_counter() - start:.2f} s")
    return program


def plan_at(stack: Stack, signature: Signature, device: str, m: int) -> Plan:
    """The plan by which m tokens are computed. What is kept for backward is the same for every m."""
    rows = bucket(m, stack.n, stack.k)
    return build(stack, signature, device, rows).plan if rows == FEW else planned(stack, signature, device, rows)


def _built_for_few(stack: Stack, signature: Signature) -> Program | None:
    """All of forward in one native call, and all of backward; None where the steps are of another kind, or too many."""
    dtypes, _ = signature
    if not native.looks() or len(set(dtypes)) > 1 or dtypes[0] not in STRIDED:
        return None
    many = planned(stack, signature, "cpu")
    if not all(may_be_strided(e) for e in (*many.forward, *many.backward)):
        return None
    chosen = planned(stack, signature, "cpu", FEW)
    try:
        program = assemble(chosen, stack, dtypes, few=True)
    except NotStrided:
        return None
    rows = few_rows(stack.n, stack.k)
    sources = [s for s in (program.forward_source, program.backward_source) if s]
    work = sum(s.strided.at(rows).work for s in sources)
    return program if chosen is not many and work <= AHEAD * PRODUCTS else None


def _title(stack: Stack) -> str:
    names = " then ".join(e.adapter.name for e in stack.equations)
    return f"{names} at {stack.n} x {stack.k}"


def _tell(chosen: Plan, stack: Stack) -> None:
    """What ADAPTC_DEBUG 2 and 3 show: the equation and its choices, then the plan."""
    if options().debug >= 2:
        print(f"adaptc: {_title(stack)}: {formula(stack.output)}")
        for c in chosen.choices:
            print(f"  {brief(c.where)}: {c.chosen} of {', '.join(c.options)}")
    if options().debug >= 3:
        print("  keeps", "; ".join(f"{brief(k.node)} ({k.reason})" for k in chosen.kept) or "x and the leaves alone")
        for way, steps in (("forward", chosen.forward), ("backward", chosen.backward)):
            for e in steps:
                print(f"  {way} {type(e).__name__} {show(e.dims)} {brief(e)}")


def assemble(
    chosen: Plan,
    stack: Stack,
    dtypes: Sequence[str],
    compiled: Kernels | None = None,
    few: bool = False,
    generated: str = "",
) -> Program:
    """The program of any plan, not only the chosen one. few: as strided steps; raises NotStrided where it is not.
    generated: with Triton kernels for the steps that have them, ALL of them or those that are predicted to GAIN."""
    write = emit_strided if few else functools.partial(emit, kernels=compiled)
    if generated:
        priced = (devices.device(chosen.task.device), chosen.task.size) if generated == GAIN else None
        write = functools.partial(emit_tiled, priced=priced)
    if options().verify:
        check([chosen.y, *(g for _, g in chosen.gradients)], primitive=True)
    arguments = stack.arguments
    given = dict(zip(arguments, dtypes, strict=True))
    adapter = stack.equations[0].adapter if stack.equations else None
    name = adapter.name if adapter else "linear"
    head = formula(stack.output)
    real = [d for d in dtypes if "int" not in d]
    types = Types(dtypes[0], wide(real), dict(given))
    names = argument_names(arguments)
    used = _used(chosen, arguments)
    kept = [k.node for k in chosen.kept]
    results = [(chosen.y, dtypes[0]), *((e, types[e]) for e in kept)]
    forward = write(f"{name}_forward", [(names[a], a) for a in used], results, types, head)
    _refuse_left(forward)
    if not chosen.gradients:
        parts = None if few or kept else split(chosen, names, types, write, name, head)
        read, by_row = _positions(used, arguments), _by_row(stack, kept)
        return Program(chosen, len(arguments), forward, None, read, (), (), False, (), by_row, parts)
    inputs = [a for a in arguments if a in set(chosen.inputs)]
    back_types = Types(types.token, types.wide, {**given, **{e: types[e] for e in kept}, stack.gy: dtypes[0]})
    back_arguments = [
        ("gy", stack.gy),
        *((names[a], a) for a in inputs),
        *((f"kept{j}", e) for j, e in enumerate(kept)),
    ]
    gradients = [(g, given[leaf]) for leaf, g in chosen.gradients]
    backward = write(f"{name}_backward", back_arguments, gradients, back_types, head)
    _refuse_left(backward)
    return Program(
        chosen,
        len(arguments),
        forward,
        backward,
        _positions(used, arguments),
        _positions([a for a in inputs if a is not arguments[0]], arguments),
        tuple(arguments.index(leaf) for leaf, _ in chosen.gradients),
        arguments[0] in inputs,
        tuple((e.dims, types[e]) for e in kept),
        _by_row(stack, kept),
    )


def _refuse_left(source: Source) -> None:
    """With ADAPTC_STRICT=1: raise where no kernel does a step that one was asked for."""
    if source.left and options().strict:
        raise UnsupportedError(
            f"ADAPTC_STRICT=1, and {source.name} has steps that no generated kernel can do: {'; '.join(source.left)}"
        )


def _by_row(stack: Stack, kept: Sequence[Expr]) -> bool:
    """A weight form treats every token alike; so does what is kept with tokens first, or without them."""
    tokens_first = all(has_rows(e) and e.dims[0] == TOKENS for e in kept if depends_on_tokens(e))
    return stack.weight is not None and not stack.given and not stack.seeded and tokens_first


def _used(chosen: Plan, arguments: Sequence[Leaf]) -> list[Leaf]:
    found = set(postorder(chosen.y, *(k.node for k in chosen.kept)))
    return [a for j, a in enumerate(arguments) if j == 0 or a in found]


def _positions(some: Sequence[Leaf], arguments: Sequence[Leaf]) -> tuple[int, ...]:
    return tuple(arguments.index(a) for a in some if a is not arguments[0])


class Last(torch.autograd.Function):
    """Gradients as they are, tied to what they were computed from: differentiating them raises."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise UnsupportedError("an adapted layer cannot be differentiated twice: second derivatives are not supported")


@torch.no_grad()
def _constant(program: Program, x: Tensor, *tensors: Tensor) -> Tensor:
    return run(program, x, *tensors)


NODE = """
class {name}(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, {arguments}):
        flat = x.ndim == 2
        y, {kept} = run({x}, {read})
        ctx.save_for_backward({saved})
        {apart}
        return y if flat else unsafe_view(y, (*x.shape[:-1], y.shape[-1]))

    @staticmethod
    def backward(ctx, gy):
        [{saved}] = ctx.saved_tensors
        if is_grad_enabled() or is_any_autocast_enabled():
            return backward_slowly(gy, ({saved}), differentiate)
        return differentiate(gy, {saved})

def differentiate(gy, {saved}):
    flat = gy.ndim == 2
    {gradients} = run_backward(gy if flat else gy.reshape(-1, gy.shape[-1]), {again})
    return {results}
"""
APART = "y = y.clone(memory_format=torch.contiguous_format) if y._is_view() or not y.is_contiguous() else y"


def joined(program: Program) -> type[torch.autograd.Function]:
    """The autograd node that joins forward and backward, written out for the arguments of this program.

    x is saved as it came, and y may be viewed and written to. Written as text because loops over arguments cost more
    than small products.
    """
    count = program.count
    arguments = [f"a{j}" for j in range(1, count)]
    kept = [f"kept{j}" for j in range(len(program.kept))]
    saved = [*(["x"] if program.saves_x else []), *(f"a{j}" for j in program.saved), *kept]
    x = "x if flat else x.reshape(-1, x.shape[-1])"
    found = [f"g{j}" for j in program.wrt]
    results = ["None"] * count
    for j in program.wrt:
        results[j] = f"g{j}" if j else "g0 if flat else g0.reshape(*gy.shape[:-1], g0.shape[-1])"
    name = f"{program.forward_source.name.title().replace('_', '')}Node"
    text = NODE.format(
        name=name,
        arguments=_listed(arguments),
        kept=_listed(kept),
        x=x,
        read=_listed(f"a{j}" for j in program.read),
        saved=_listed(saved),
        apart="" if program.forward_source.strided else APART,
        gradients=_listed(found),
        again=_listed(x if name == "x" else name for name in saved),
        results=_listed(results),
    )
    space: dict[str, Any] = {
        "torch": torch,
        "is_grad_enabled": torch.is_grad_enabled,
        "is_any_autocast_enabled": torch._C._is_any_autocast_enabled,
        "run": program.forward,
        "run_backward": program.backward,
        "unsafe_view": torch.ops.aten._unsafe_view.default,
        "backward_slowly": backward_slowly,
    }
    exec(compile(text, f"<adaptc node of {program.forward_source.digest}>", "exec"), space)  # our own text
    node: type[torch.autograd.Function] = space[name]
    return node


def _listed(names: Iterable[str]) -> str:
    return "".join(f"{name}, " for name in names)


def backward_slowly(gy: Tensor, saved: tuple[Tensor, ...], differentiate: Callable[..., Any]) -> Any:
    """A backward under autocast, which must not reach into it, or with create_graph=True: then a second derivative
    must raise, not be dropped."""
    with torch.no_grad(), torch.autocast("cpu" if gy.is_meta else gy.device.type, enabled=False):
        found = differentiate(gy, *saved)
    if not torch.is_grad_enabled():
        return found
    real = [g for g in found if g is not None]
    tied = iter(Last.apply(len(real), *real, gy, *saved))  # type: ignore[no-untyped-call]
    return tuple(None if g is None else next(tied) for g in found)


def run(program: Program, x: Tensor, *tensors: Tensor) -> Tensor:
    """One call without autograd."""
    return _on_rows(program.forward, x, [tensors[j - 1] for j in program.read])


def run_rest(program: Program, values: Sequence[Tensor], x: Tensor, *tensors: Tensor) -> Tensor:
    """One call without autograd, given the values of the parameters alone."""
    assert program.split is not None
    return _on_rows(program.rest, x, [*(tensors[j - 1] for j in program.split.read), *values])


def _on_rows(forward: Callable[..., tuple[Tensor, ...]], x: Tensor, read: list[Tensor]) -> Tensor:
    if x.ndim == 2:
        return forward(x, *read)[0].contiguous()
    y = forward(x.reshape(-1, x.shape[-1]), *read)[0].contiguous()
    return y.reshape(*x.shape[:-1], y.shape[-1])


@functools.lru_cache(maxsize=512)
def weight_program(stack: Stack, dtypes: tuple[str, ...], device: str) -> Callable[..., tuple[Tensor, ...]]:
    """(W, bias, leaves...) -> (W', bias') in float32 or wider, each planned as a forward of its own."""
    assert stack.weight is not None
    assert stack.bias is not None
    arguments = [a for a in stack.arguments[1:] if a.role not in ("given", "seed")]
    given = dict(zip(arguments, dtypes, strict=True))
    dtype = wide([d for d in dtypes if "int" not in d])
    types = Types(dtype, dtype, dict(given))
    roots = [plan(Task(e, stack.gy, (), planned_as(device))).y for e in (stack.weight, stack.bias)]
    head = formula(stack.weight)
    source = emit(
        "adapted_weight",
        [(name, a) for a, name in argument_names(arguments).items()],
        [(r, dtype) for r in roots],
        types,
        head,
    )
    return load(source)
