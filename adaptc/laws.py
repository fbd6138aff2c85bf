"""The contract of an adapter, one function a law: `adaptc.verify` runs them, on the catalogue too."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adaptc.case import ROOM, Case, close, compare_gradients, gradients_of, move, need, oracle
from adaptc.equation import STAND_IN
from adaptc.errors import AdaptcError, LawError, MergeError, ShapeError
from adaptc.explain import kept as kept_report
from adaptc.ir import dims
from adaptc.ir.cost import entries
from adaptc.ir.dims import TOKENS
from adaptc.ir.expand import dense as formed
from adaptc.ir.expand import expand
from adaptc.ir.expr import Expr, postorder
from adaptc.ir.matrix import MatMul, Transpose
from adaptc.ir.operator import AbstractOperator
from adaptc.ir.prims import Add, Contract, Leaf, Scale
from adaptc.ir.printer import brief
from adaptc.method import Adapter
from adaptc.nn.call import fresh_seed
from adaptc.nn.files import load, save
from adaptc.nn.inject import inject
from adaptc.nn.linear import AdaptedLinear
from adaptc.nn.merging import merge, unmerge
from adaptc.nn.state import disabled
from adaptc.plan.plan import Plan
from adaptc.plan.search import candidates
from adaptc.runtime.ops import dtypes_of
from adaptc.runtime.planning import task_of
from adaptc.runtime.program import assemble, build
from adaptc.runtime.random import bernoulli
from adaptc.runtime.reference import Evaluator
from adaptc.runtime.stack import needs

# ------------------------------------------------------------------------------------------------ the laws


def operators(case: Case) -> None:
    """Each operator's `apply` and `as_matrix` agree with its definition."""
    layer = case.layer
    composed, x = layer.stack(), case.x()
    tensors = case.tensors(layer.eval(), x)
    leaves = dict(zip(composed.arguments, [x, *tensors], strict=True))
    layer.train()
    for e in postorder(composed.output):
        if not isinstance(e, AbstractOperator) or e.kind == "complex":
            continue
        want = Evaluator(leaves, torch.float64, rows=case.m)(e).detach()
        name = f"operator {e.name}"
        dense = Evaluator(leaves, torch.float64, rows=case.m)(formed(e)).detach()
        close(name, dense, want, f"as_matrix of {brief(e)}")
        if e.ndim == 2:
            v = Leaf("v", (TOKENS, e.dims[1]), "token")
            tokens = torch.randn(case.m, want.shape[1], dtype=torch.float64)
            applied = expand(e.apply(v))
            got = Evaluator({**leaves, v: tokens}, torch.float64, rows=case.m)(applied)
            close(name, got.detach(), tokens @ want.T, f"apply of {brief(e)}")


def shapes(case: Case) -> None:
    """Wrong sizes raise ShapeError naming both; results have the shapes the symbols say."""
    wrong = torch.zeros(2, case.k + 1, dtype=torch.float64)
    try:
        case.layer(wrong)
    except ShapeError as error:
        text = str(error)
        named = str(case.k) in text and str(case.k + 1) in text
        need("shapes", named, lambda: f"the error does not name both sizes: {text}")
    else:
        raise LawError("shapes", f"x with rows of {case.k + 1} was accepted by a layer that takes {case.k}")
    y = case.call(case.layer, case.x())
    need(
        "shapes",
        y.shape == (case.m, case.n),
        lambda: f"y is {tuple(y.shape)}, wanted {(case.m, case.n)}",
    )


def forward(case: Case) -> None:
    """layer(x) = the dense definition = x @ adapted_weight.T + adapted_bias, float64."""
    x = case.x()
    y = case.call(case.layer, x)
    want, _ = oracle(case, case.layer, x)
    close("forward", y, want, "y")
    composed = case.layer.stack()
    if composed.weight is not None and not needs(composed, composed.weight):
        y = case.call(case.layer.eval(), x)
        case.layer.train()
        bias = case.layer.adapted_bias()
        dense = x @ case.layer.adapted_weight().T + (bias if bias is not None else 0)
        close("forward", y, dense, "y against x @ adapted_weight().T + adapted_bias()")


def gradients(case: Case) -> None:
    """Gradients of x, W, bias and every parameter = autograd through the dense definition, float64."""
    layer = case.make()
    for p in (layer.weight, layer.bias):
        assert p is not None
        p.requires_grad_()
    x = case.x().requires_grad_()
    gy = torch.randn(case.m, case.n, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    want_y, tensors = oracle(case, layer, x)
    wrt = [t for t in tensors if t.requires_grad]
    names = [a.name for a, t in zip(layer.stack(True).arguments, tensors, strict=True) if t.requires_grad]
    got = gradients_of(case.call(layer, x), wrt, gy)
    size = (gy.norm() * want_y.norm()).detach()
    want = gradients_of(want_y, wrt, gy)
    for name, g, w, t in zip(names, got, want, wrt, strict=True):
        compare_gradients("gradients", [g], [w], [t], size, f"the gradient of {name} {{}}")


def plans(case: Case) -> None:
    """Every candidate plan gives the same y and gradients, not only the chosen one (the first 64, all forms first).

    One that computes a value of over 2^24 entries is not run.
    """
    layer, x = case.layer, case.x().requires_grad_()
    composed, tensors = layer.stack(True), case.tensors(layer, x)
    wants = tuple(t.requires_grad for t in (x, *tensors))
    dtypes = tuple(dtypes_of([x, *tensors]))
    gy = torch.randn(case.m, case.n, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    want_y, values = oracle(case, layer, x)
    wrt = [t for t in values if t.requires_grad]
    want = gradients_of(want_y, wrt, gy)
    for p in itertools.islice(candidates(task_of(composed, wants, "cpu")), case.plans):
        if _largest(p, case.m) > ROOM:
            continue
        program = assemble(p, composed, dtypes)
        y = program.call(x, *tensors)
        form = "; ".join(f"{brief(c.where, 40)}: {c.chosen}" for c in p.choices)
        close("plans", y, want_y, f"y under the plan [{form}]")
        what = "a gradient {} under the plan [" + form.replace("{", "").replace("}", "") + "]"
        compare_gradients("plans", gradients_of(y, wrt, gy), want, wrt, (gy.norm() * want_y.norm()).detach(), what)


def _largest(chosen: Plan, m: int) -> int:
    """Entries of the largest value that a plan computes."""
    steps = [*chosen.forward, *chosen.backward]
    return max((entries(e.dims, lambda d: dims.value(d, {TOKENS: m})) for e in steps), default=0)


def precision(case: Case) -> None:
    """float32 and bfloat16: error at most twice plain torch's, plus 2 eps |x| (|W| + |terms|)^T."""
    for dtype in (torch.float32, torch.bfloat16):
        layer = case.make(dtype)
        x = case.x(dtype=dtype)
        composed, tensors = layer.stack(True), case.tensors(layer, x)
        wide = [t.to(torch.float64) if t.is_floating_point() else t for t in (x, *tensors)]
        leaves = dict(zip(composed.arguments, wide, strict=True))
        exact = Evaluator(leaves, torch.float64, rows=case.m)
        y64 = exact(composed.output).detach()
        plain = _plain(layer, x, tensors)
        largest = _absolute(composed.output, exact)
        bound = 2 * (plain - y64).norm() + 2 * torch.finfo(dtype).eps * largest.norm()
        got = case.call(layer, x).detach().to(torch.float64)
        error = (got - y64).norm()
        need(
            "precision",
            bool(error <= bound),
            lambda: f"in {dtype} y is off by {float(error):.3g}, the bound is {float(bound):.3g}",  # noqa: B023
        )


@torch.no_grad()
def _plain(layer: AdaptedLinear, x: Tensor, tensors: list[Tensor]) -> Tensor:
    """Plain torch: the dense W' in float32, rounded once to x's dtype, then F.linear; what has no W' in x's dtype."""
    composed = layer.stack(True)
    values = [t.to(torch.float32) if t.is_floating_point() else t for t in (x, *tensors)]
    evaluate = Evaluator(dict(zip(composed.arguments, values, strict=True)), torch.float32, rows=x.shape[0])
    if composed.weight is None or composed.bias is None or composed.seeded or composed.given:
        return evaluate(composed.output).to(x.dtype).to(torch.float64)
    weight, bias = evaluate(composed.weight).to(x.dtype), evaluate(composed.bias).to(x.dtype)
    return nn.functional.linear(x, weight, bias).to(torch.float64)


def _absolute(e: Expr, exact: Evaluator) -> Tensor:
    """|x| (|W| + |terms|)^T: sums, products and numbers by absolute values, everything else by its absolute value."""

    def go(node: Expr) -> Tensor:
        match node:
            case Add():
                return torch.stack([go(t) for t in node.terms]).sum(0)
            case Scale():
                return abs(float(node.factor)) * go(node.x)
            case MatMul():
                return go(node.A) @ go(node.B)
            case Transpose():
                return go(node.A).mT
            case Contract():
                return torch.einsum(node.spec, *map(go, node.operands))
            case _:
                return exact(node).detach().abs()

    return go(e)


def identity(case: Case) -> None:
    """On the bare base, attaching changes nothing unless the method says identity=False."""
    if not case.adapter.method.identity:
        return
    layer, x = case.make(moved=False).eval(), case.x()
    close("identity", case.call(layer, x), case.base()(x), "y just after attaching")


def merging(case: Case) -> None:
    """Merged forward = forward; unmerge restores the weights bit for bit; an output form refuses."""
    before = copy.deepcopy(nn.Sequential(case.base()).state_dict())
    model = case.model().eval()
    x = case.x()
    y = case.call(model, x).detach()
    layer = model[0]
    assert isinstance(layer, AdaptedLinear)
    composed = layer.stack()
    if composed.weight is None or needs(composed, composed.weight):
        try:
            merge(model)
        except MergeError:
            return
        raise LawError("merging", "a method that needs x, or what a call is given, was merged")
    merge(model)
    close("merging", model(x).detach(), y, "y after merging")
    with disabled(model):
        plain = nn.Linear(case.k, case.n, dtype=torch.float64)
        plain.load_state_dict({"weight": before["0.weight"], "bias": before["0.bias"]})
        need(
            "merging",
            torch.equal(model[0](x), plain(x)),
            lambda: "a merged, disabled layer is not the original",
        )
    unmerge(model)
    after = model.state_dict()
    for key, value in before.items():
        need("merging", torch.equal(after[key], value), lambda: f"{key} is not restored bit for bit")  # noqa: B023


def pairs(case: Case) -> None:
    """Two adapters on one layer: forward = merged forward, in both orders."""
    from adaptc.methods.low_rank import lora

    other = lora(r=2)
    for first, second in (
        (case.adapter, other),
        (other, case.adapter),
        (case.adapter, case.adapter),
    ):
        pair(case, first, second)


@torch.no_grad()
def pair(case: Case, first: Adapter, second: Adapter) -> None:
    """Two adapters on one layer: forward = the dense definition = merged forward."""
    layer = AdaptedLinear(case.measured(case.base()), first, name="first", layer=STAND_IN)
    model = nn.Sequential(layer).eval()
    try:
        inject(model, second, ["0"], name="second")
    except AdaptcError:
        output = [a.trace(case.n, case.k).is_output_form for a in (first, second)]
        need("pairs", output == [True, False], lambda: f"{first} then {second} was refused")
        return
    move(model, case.seed)
    x = case.x()
    y = case.call(layer, x)
    want, _ = oracle(case, layer, x)
    close("pairs", y, want, f"y of {first} then {second}")
    composed = layer.stack()
    if composed.weight is not None and not needs(composed, composed.weight):
        layer.merge()
        close("pairs", case.call(layer, x), y, f"merged y of {first} then {second}")


def round_trips(case: Case) -> None:
    """save, load, pickle, deepcopy, state_dict and to(dtype) give the same layer."""
    model = case.model()
    x = case.x()
    y = case.call(model, x).detach()
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder)
        loaded = load(nn.Sequential(case.base()), folder)
    copies = {"save and load": loaded, "deepcopy": copy.deepcopy(model), "pickle": _pickled(model)}
    fresh = case.model()
    fresh.load_state_dict(model.state_dict(), strict=True)
    copies["state_dict"] = fresh
    copies["to"] = copy.deepcopy(model).to(torch.device("cpu"), torch.float64)
    for way, other in copies.items():
        close("round trips", case.call(other, x).detach(), y, f"y after {way}")
        for key, value in model.state_dict().items():
            same = torch.equal(other.state_dict()[key], value)
            need("round trips", same, lambda: f"{way} changes {key}")  # noqa: B023


NAMELESS = ("import", "not found", "attribute lookup")
"""What pickle says of a method that stands in no importable module."""


def _pickled(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    try:
        pickle.dump(model, buffer)
    except (pickle.PicklingError, AttributeError) as error:
        return copy.deepcopy(model) if any(t in str(error) for t in NAMELESS) else _fail(error)
    buffer.seek(0)
    result: nn.Module = pickle.load(buffer)
    return result


def _fail(error: Exception) -> Any:
    raise LawError("round trips", f"pickle fails: {error}") from error


def kept(case: Case) -> None:
    """Bytes kept for backward = what explain says, by saved-tensor hooks and by tensors alive after forward."""
    for dtype in (torch.float32, torch.bfloat16):
        layer = case.make(dtype)
        x = case.x(dtype=dtype).requires_grad_()
        ours = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), *layer.buffers())}
        seen: dict[int, Tensor] = {}

        def pack(t: Tensor) -> Tensor:
            seen[t.untyped_storage().data_ptr()] = t  # noqa: B023
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = case.call(layer, x)
        measured = sum(t.untyped_storage().nbytes() for at, t in seen.items() if at not in ours)
        composed, tensors = layer.stack(True), case.tensors(layer, x)
        wants = tuple(t.requires_grad for t in (x, *tensors))
        program = build(composed, (tuple(dtypes_of([x, *tensors])), wants), "cpu")
        said = kept_report(program.plan, composed.arguments, str(dtype).removeprefix("torch."), {TOKENS: case.m})
        need(
            "kept bytes",
            measured == said["bytes"],
            lambda: f"{measured} bytes are kept, explain says {said['bytes']} (gradients wanted: {wants})",  # noqa: B023
        )
        del y


def inputs(case: Case) -> None:
    """0 tokens, one token, 3-D and 4-D x, non-contiguous x and gradient: the same as row by row."""
    layer = case.layer
    for lead in ((0,), (1,), (2, 3), (2, 1, 3), (2, 0)):
        _one_input(case, layer, case.x(*lead).requires_grad_(), lead)
    strided = case.x(case.k, 3)[:, :, : case.k].transpose(0, 1)[:, :, ::1].mT.contiguous().mT.requires_grad_()
    other = strided.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    gy = torch.randn(case.n, *strided.shape[:-1], dtype=torch.float64).movedim(0, -1)
    close("inputs", case.call(layer, strided), case.call(layer, other), "y for a non-contiguous x")
    got, want = (gradients_of(case.call(layer, t), [t], gy)[0] for t in (strided, other))
    close("inputs", got, want, "the gradient of a non-contiguous x")


def _one_input(case: Case, layer: AdaptedLinear, x: Tensor, lead: tuple[int, ...]) -> None:
    y = case.call(layer, x)
    need("inputs", y.shape == (*lead, case.n), lambda: f"x {tuple(x.shape)} gives y {tuple(y.shape)}")
    want, _ = oracle(case, layer, x.reshape(-1, case.k))
    close("inputs", y.reshape(-1, case.n), want, f"y for x {tuple(x.shape)}")
    y.sum().backward()  # type: ignore[no-untyped-call]
    need("inputs", x.grad is not None and x.grad.shape == x.shape, lambda: "the gradient of x has another shape")


def deterministic(case: Case) -> None:
    """Two runs give identical bits, two builds identical source."""
    x = case.x()
    need(
        "deterministic",
        torch.equal(case.call(case.layer, x), case.call(case.layer, x)),
        lambda: "two runs of one layer differ",
    )
    texts = []
    for _ in range(2):
        layer = case.make()
        composed, tensors = layer.stack(True), case.tensors(layer, x)
        wants = (True, *(t.requires_grad for t in tensors))
        dtypes = ("float64", *dtypes_of(tensors))
        first = next(candidates(task_of(composed, wants, "cpu")))
        program = assemble(first, composed, dtypes)
        texts.append(program.forward_source.text + (program.backward_source.text if program.backward_source else ""))
    need("deterministic", texts[0] == texts[1], lambda: "two builds give different source")


def dropout(case: Case) -> None:
    """While training, y = x W^T + b' + D(x) (W' - W)^T with D from the seed; neither the mask nor D(x) is kept."""
    layer, x, p = case.make(dropout=0.3), case.x().requires_grad_(), 0.3
    composed = layer.stack(True)
    if composed.weight is None or case.layer.stack(True).seeded or composed.given:
        return
    y = case.call(layer, x)
    torch.manual_seed(case.seed + 3)
    mask = bernoulli(fresh_seed(x.device), 0, p, (case.m, case.k), x.dtype) / (1 - p)
    plain = dict(zip(layer.stack().arguments, [x, *layer.tensors()], strict=False))
    evaluate = Evaluator(plain, torch.float64, rows=case.m)
    weight, bias = evaluate(layer.stack().weight), evaluate(layer.stack().bias)  # type: ignore[arg-type]
    base = layer.weight
    want = x @ base.T + bias + (x * mask) @ (weight - base).T
    close("dropout", y, want, "y under dropout")
    wrt = [t for t in (x, *layer.tensors()) if t.requires_grad]
    gy = torch.randn(case.m, case.n, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    size = (gy.norm() * want.norm()).detach()
    compare_gradients(
        "dropout", gradients_of(y, wrt, gy), gradients_of(want, wrt, gy), wrt, size, "a gradient {} under dropout"
    )


LAWS: dict[str, Callable[[Case], None]] = {
    "operators": operators,
    "shapes": shapes,
    "forward": forward,
    "gradients": gradients,
    "plans": plans,
    "precision": precision,
    "identity": identity,
    "merging": merging,
    "pairs": pairs,
    "round trips": round_trips,
    "kept bytes": kept,
    "inputs": inputs,
    "dropout": dropout,
    "deterministic": deterministic,
}
"""The contract, in the order in which it is checked: what the others rest on comes first."""
WITHOUT_CALLS = ("operators", "plans")
"""Laws that do not call the layer: they are the same through the registered operators."""
