"""What the compiler makes of an adapter: formula, parameters, FLOPs, what is kept and why, the plan and its rivals."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
from rich.console import Group
from rich.text import Text

from adaptc.codegen.native import block_step, draws_natively
from adaptc.codegen.types import Types, has_rows, wide
from adaptc.console import rendered
from adaptc.equation import Equation
from adaptc.errors import PlanError
from adaptc.explain.kernels import kernel_rows
from adaptc.explain.prices import Prices, prices
from adaptc.explain.steps import Graph
from adaptc.explain.tables import (
    choice_table,
    cost_table,
    kept_table,
    kernel_tables,
    rivals_table,
    step_table,
    tokens_table,
)
from adaptc.explain.tokens import by_tokens
from adaptc.explain.tree import plan_tree
from adaptc.ir.build import count
from adaptc.ir.cost import cost
from adaptc.ir.dims import TOKENS, Dim
from adaptc.ir.expr import Expr, postorder
from adaptc.ir.prims import Contract, Draw, Leaf
from adaptc.ir.printer import brief
from adaptc.ir.sympy_bridge import to_sympy
from adaptc.method import CONCRETE, Adapter, Method, symbolic, symbols
from adaptc.plan.device import BYTES, DEVICES
from adaptc.plan.device import device as device_named
from adaptc.plan.plan import NOMINAL, Choice, Plan, Task, depends_on_tokens, total
from adaptc.plan.plan import max_saved as max_saved_of
from adaptc.plan.search import candidates, plan
from adaptc.runtime.machine import described
from adaptc.runtime.planning import Signature, planned_as, task_of
from adaptc.runtime.program import kernels, plan_at
from adaptc.runtime.stack import Stack, stack

CONSIDERED = 24
REPRESENTATIVE = 4096  # n and k at which choices are made where the sizes are symbolic


@dataclass(frozen=True)
class Report:
    """The facts as data; `str` lays them out as tables."""

    facts: Mapping[str, Any]
    equation: Equation

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dict(self.facts)

    def to_sympy(self) -> Any:
        """The adapted weight (or output) as a SymPy matrix expression."""
        result = next(e for e in (self.equation.weight, self.equation.output) if e is not None)
        return to_sympy(result)

    def latex(self) -> str:
        """The equation in LaTeX."""
        left = "W'" if self.equation.weight is not None else "y'"
        return f"{left} = {sympy.latex(self.to_sympy())}"

    def tree(self, width: int = 118) -> str:
        """The plan's graph, forward and backward, as text of `width` columns: one line a step, each step once."""
        return rendered(plan_tree(self.facts), width)

    def __str__(self) -> str:
        return rendered(self)

    def __rich__(self) -> Group:
        f = self.facts
        head = Text(f"{f['adapter']}\n  {f['formula']}\n")
        head.append(f"  n = {f['n']}, k = {f['k']}, m = {f['m']}, {f['dtype']}, {f['device']}, {f['mode']}\n")
        if f["note"]:
            head.append(f"  {f['note']}\n")
        head.append(f"  trainable parameters: {f['parameters']}")
        parts: list[Any] = [
            head,
            cost_table(f),
            kept_table(f),
            step_table(f),
            *kernel_tables(f),
            choice_table(f),
            tokens_table(f),
            rivals_table(f),
        ]
        return Group(*parts)


def explain(
    adapter: Adapter | Method,
    n: int | None = None,
    k: int | None = None,
    m: int | None = None,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    mode: str = "train",
    max_saved: str | int | None = None,
) -> Report:
    """Everything the compiler decides about one layer, without running it.

    n, k, m: outputs, inputs, tokens; left out, they stay symbols and the figures are formulas. dtype: of x (parameters
    are float32 beside 16-bit x). device: a name of `adaptc.plan.device.DEVICES`, "calibrated" (this machine as
    `adaptc tune --calibrate` measured it) or the path of such a file. mode: "train" (gradients of x and of every
    parameter) or "eval". max_saved: the most that may be kept for backward, in bytes (at m tokens, or 1,024) or as
    "1.5x" of the bytes of x; PlanError if it cannot be. Seconds are predictions at m tokens, those of the candidates
    at the number of tokens at which the search ranks them.
    """
    bound = adapter() if isinstance(adapter, Method) else adapter
    where = device_named(described(str(device)))
    if mode not in ("train", "eval"):
        raise PlanError(f"mode is 'train' or 'eval', got '{mode}'")
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in BYTES or "int" in dtype or "complex" in dtype:
        raise PlanError(f"x cannot be {dtype}: one of float32, float64, bfloat16, float16")
    text, open_equation = symbolic(bound, n or CONCRETE, k or CONCRETE)
    (rows, cols), note = _sizes(n, k, open_equation)
    composed = stack(((bound.trace(rows, cols), 0.0),), rows, cols, True, mode == "train", max_saved_of(max_saved))
    trained = {s.leaf for s in composed.equations[0].leaves if s.trainable}
    wants = [mode == "train" and (leaf.role == "token" or leaf in trained) for leaf in composed.arguments]
    at = tuple((s, REPRESENTATIVE) for s in symbols() if not (isinstance(rows, int) and isinstance(cols, int)))
    task = task_of(composed, wants, where.name, at, dtype, NOMINAL if m is None else m)
    bindings = {} if m is None else {TOKENS: m}
    types = _types(composed.arguments, dtype)
    if m is None or at or max_saved is not None or where.name != planned_as("cpu"):
        chosen = plan(task)
    else:
        signature = tuple(types[a] for a in composed.arguments), tuple(wants)
        chosen = plan_at(composed, signature, "cpu", m)
    ranked = dict(chosen.task.at).get(TOKENS, NOMINAL)
    rows_at = ranked if m is None else m
    price = prices(chosen, rows_at)
    graph = Graph(chosen)
    facts = {
        "adapter": repr(bound), "formula": text, "note": note,
        "n": str(rows), "k": str(cols), "m": str(TOKENS if m is None else m),
        "dtype": dtype, "device": device, "mode": mode,
        "parameters": _show(sum(count(leaf.dims) for leaf in trained), {}),
        "cost": _costs(chosen, rows, cols, bindings),
        "kept": kept(chosen, composed.arguments, dtype, bindings, mode),
        "seconds": {"rows": rows_at, **price.totals()},
        "steps": _rows(graph, bindings, types, price),
        "results": graph.results(),
        "kernels": kernel_rows(chosen, types, rows_at),
        "choices": [
            {"where": brief(c.where, 70), "of": c.of, "purpose": c.purpose, "chosen": c.chosen, "options": [*c.options]}
            for c in chosen.choices
        ],
        "forms": _forms(chosen.choices, 70, ("form", "for")),
        "by tokens": _by_tokens(composed, (tuple(types[a] for a in composed.arguments), tuple(wants)), where.name, m),
        "ranked at": ranked,
        "candidates": _rivals(chosen, ranked),
    }  # fmt: skip
    return Report(facts, composed.equations[0])


def _by_tokens(composed: Stack, signature: Signature, where: str, m: int | None) -> list[dict[str, Any]]:
    if where != planned_as("cpu") or not (isinstance(composed.n, int) and isinstance(composed.k, int)):
        return []
    if isinstance(composed.max_saved, int) and m not in (None, NOMINAL):  # it was asked for m tokens alone
        return []
    return by_tokens(composed, signature, lambda choices: _forms(choices, 40, ("form", "for")))


def _sizes(n: int | None, k: int | None, equation: Equation) -> tuple[tuple[Dim, Dim], str]:
    if n is not None and k is not None:
        return (n, k), ""
    if isinstance(equation.n, int):
        return (
            equation.n,
            equation.k,
        ), f"the equation needs numbers for its sizes: shown at {equation.n} x {equation.k}"
    open_n, open_k = symbols()
    size = f"choices are made at n = k = {REPRESENTATIVE}"
    return (n if n is not None else open_n, k if k is not None else open_k), size


def _show(amount: Any, bindings: Mapping[Any, int]) -> Any:
    if isinstance(amount, sympy.Expr):
        amount = sympy.sympify(amount.xreplace(dict(bindings)))
        return int(amount) if amount.is_number else str(sympy.factor_terms(sympy.expand(amount)))
    return int(amount)


def _exact(d: Dim) -> Any:
    return sympy.Integer(d) if isinstance(d, int) else d


def _costs(chosen: Plan, rows: Dim, cols: Dim, bindings: Mapping[Any, int]) -> dict[str, Any]:
    forward, backward = (total(steps, _exact) for steps in (chosen.forward, chosen.backward))
    base = 2 * TOKENS * _exact(rows) * _exact(cols)
    return {
        "base": _show(base, bindings),
        "forward": _show(sympy.sympify(forward.flops), bindings),
        "backward": _show(sympy.sympify(backward.flops), bindings),
        "forward over base": _ratio(forward.gemm, base, bindings),
        "backward over base": _ratio(backward.gemm, base, bindings),
    }


def _ratio(flops: Any, base: Any, bindings: Mapping[Any, int]) -> Any:
    if bindings.get(TOKENS) == 0:
        return 0.0
    ratio = sympy.sympify(sympy.simplify(sympy.sympify(flops) / base)).xreplace(dict(bindings))
    ratio = sympy.sympify(ratio)
    return round(float(ratio), 4) if ratio.is_number else str(sympy.expand(ratio))


def _types(arguments: Any, dtype: str) -> Types:
    """Dtypes where x, W and the bias have one and trained leaves are float32 beside 16-bit x."""
    leaf_dtype = dtype if dtype in ("float32", "float64") else "float32"
    given = {
        a: dtype if a.role in ("token", "weight", "bias", "given") else leaf_dtype
        for a in arguments
        if a.kind == "real"
    }
    return Types(
        dtype,
        wide(list(given.values())),
        {**given, **{a: "int64" for a in arguments if a.kind == "integer"}},
    )


def kept(chosen: Plan, arguments: Any, dtype: str, bindings: Mapping[Any, int], mode: str = "train") -> dict[str, Any]:
    """What stays alive from forward to backward beside parameters and buffers: tensors, bytes, reasons."""
    types = _types(arguments, dtype)
    entries = []
    if mode == "train":
        for e in chosen.inputs:
            if e.role in ("given", "seed"):
                entries.append(
                    _kept(e, types[e], "from outside" if e.role == "given" else "draws the mask again", bindings)
                )
            if e.role == "token":
                users = [leaf.name for leaf, g in chosen.gradients if _reads(g, e)]
                entries.append(
                    _kept(
                        e,
                        dtype,
                        f"for the gradients of {', '.join(users)}; as it came, not copied",
                        bindings,
                    )
                )
        entries += [_kept(k.node, types[k.node], k.reason, bindings) for k in chosen.kept]
    amount = sum((e["_exact"] for e in entries), sympy.Integer(0))
    x = next(a for a in arguments if a.role == "token")
    whole = sympy.sympify(count(x.dims)) * BYTES[dtype]
    for entry in entries:
        del entry["_exact"]
    return {
        "tensors": entries,
        "bytes": _show(amount, bindings),
        "over x": _ratio(amount, whole, bindings),
    }


def _reads(g: Expr, leaf: Leaf) -> bool:
    return leaf in set(postorder(g))


def _kept(e: Expr, dtype: str, reason: str, bindings: Mapping[Any, int]) -> dict[str, Any]:
    amount = sympy.sympify(count(e.dims)) * BYTES[dtype]
    return {
        "tensor": brief(e, 48), "shape": [str(d) for d in e.dims], "dtype": dtype,
        "bytes": _show(amount, bindings), "reason": reason, "_exact": amount,
    }  # fmt: skip


def _side(e: Expr) -> str:
    return "tokens" if has_rows(e) else "gradients" if depends_on_tokens(e) else "parameters"


def _by(e: Expr, types: Types, task: Task) -> str:
    """Who does a step: a compiled kernel of ours, or torch."""
    ours = kernels(task.device if task.device in DEVICES else device_named(task.device).kind)  # or a measured CPU
    if isinstance(e, Draw):
        return "native" if draws_natively(e, types, ours) else "aten"
    return "native" if isinstance(e, Contract) and block_step(e, types, ours) else "aten"


def _rows(graph: Graph, bindings: Mapping[Any, int], types: Types, price: Prices) -> list[dict[str, Any]]:
    return [
        {
            "number": number, "way": way, "step": type(e).__name__, "value": brief(e, 56),
            "shape": [str(d) for d in e.dims], "flops": _show(sympy.sympify(cost(e, _exact).flops), bindings),
            "seconds": price.of(e, way), "side": _side(e), "by": _by(e, types, graph.plan.task),
            "reads": graph.reads(e, way),
        }
        for number, way, e in graph.rows
    ]  # fmt: skip


def _forms(choices: Iterable[Choice], width: int, kinds: tuple[str, ...]) -> dict[str, str]:
    """What was chosen where; for one purpose alone where it differs from what the others take."""
    found = {}
    shared = {c.where: c.chosen for c in choices if c.of == "form"}
    for c in choices:
        if c.of in kinds and not (c.of == "for" and c.chosen == shared.get(c.where)):
            about = {"for": f" for {c.purpose}", "kept": ", kept", "first": ", when"}.get(c.of, "")
            found[brief(c.where, width) + about] = c.chosen
    return found


def _rivals(chosen: Plan, rows_at: int) -> list[dict[str, Any]]:
    """The chosen plan and the first that the search could have taken, by predicted seconds at its own number of
    tokens."""
    found = {p.choices: p for p in (*itertools.islice(candidates(chosen.task), CONSIDERED), chosen)}
    rows = []
    for p in sorted(found.values(), key=lambda p: p.seconds):
        form = _forms(p.choices, 40, ("form", "for", "order", "kept", "first"))
        ways = {f"{way} seconds": seconds for way, seconds in prices(p, rows_at).totals().items()}
        rows.append({"predicted seconds": p.seconds, **ways, "form": form, "chosen": p.choices == chosen.choices})
    return rows
