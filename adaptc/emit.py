"""Generated source as a package of its own: forward and backward of one adapter, for torch and triton alone."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from adaptc.codegen.source import WORD, Source
from adaptc.errors import PlanError
from adaptc.ir.dims import TOKENS, show
from adaptc.ir.prims import Leaf
from adaptc.ir.printer import formula
from adaptc.method import Adapter, Method
from adaptc.plan.search import departures, plan
from adaptc.runtime import random as random_numbers
from adaptc.runtime import sparse, transforms
from adaptc.runtime.attach import Wholes, attach, cut
from adaptc.runtime.generated import ALL
from adaptc.runtime.planning import task_of
from adaptc.runtime.program import Program, assemble
from adaptc.runtime.stack import Stack, stack
from adaptc.runtime.tables import tabulate

TARGETS = {"sm_80": "a100", "sm_86": "a100", "sm_89": "a100", "sm_90": "h200", "sm_100": "h200", "sm_120": "h200"}
"""The device whose rates rank the plans, by compute capability."""
DTYPES = ("float32", "bfloat16", "float16")
BESIDE: dict[str, ModuleType] = {"random_numbers": random_numbers, "sparse": sparse, "transforms": transforms}
"""Modules whose functions generated text may call: torch alone."""
ROWS = 5  # tokens of the package's example
SPREAD = 0.2  # of the example's values


@dataclass(frozen=True)
class Emitted:
    """A written package. left: steps that no kernel does, and why."""

    folder: Path
    files: tuple[str, ...]
    kernels: int
    left: tuple[str, ...]


def emit_package(
    adapter: Adapter | Method, n: int, k: int, m: int, dtype: str, target: str, out: str | Path
) -> Emitted:
    """Write the forward and backward of an adapter on a layer n x k, planned for m tokens on a target, as a package.

    Every step that can be is a generated kernel; long products are torch's. x, W and bias are of `dtype`, trained
    leaves float32. Raises PlanError naming the dtypes or targets there are, or a folder that is no empty one.
    """
    if dtype not in DTYPES:
        raise PlanError(f"no package for {dtype}: one of {', '.join(DTYPES)}")
    if target not in TARGETS:
        raise PlanError(f"unknown target '{target}': one of {', '.join(TARGETS)}")
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PlanError(f"{folder} is there already: name a new folder, or an empty one")
    bound = adapter() if isinstance(adapter, Method) else adapter
    composed = stack(((bound.trace(n, k), 0.0),), n, k, True, True)
    dtypes = _dtypes(composed, dtype)
    program, plain = _programs(composed, dtypes, TARGETS[target], m)
    assert program.backward_source is not None
    files = {
        "__init__.py": _init(composed, program, dtypes),
        "forward.py": _file(program.forward_source),
        "backward.py": _file(program.backward_source),
        f"test_{bound.name}.py": TEST.format(name=bound.name, dtype=dtype),
        "README.md": _readme(bound, composed, dtypes, m, target),
        **_beside(program.forward_source, program.backward_source),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    sources = (program.forward_source, program.backward_source)
    tables = [[tabulate(t, torch.device("cpu")).clone() for t in s.tables] for s in sources]
    torch.save(tables, folder / "tables.pt")
    torch.save(_example(composed, plain, dtypes), folder / "example.pt")
    kernels = sum(len(s.kernels) for s in sources)
    left = tuple(line for s in sources for line in s.left)
    return Emitted(folder, (*sorted(files), "example.pt", "tables.pt"), kernels, left)


def _dtypes(composed: Stack, dtype: str) -> tuple[str, ...]:
    """Of the arguments, as a layer holds them."""
    base = ("token", "weight", "bias", "given")
    leaf = dtype if dtype == "float32" else "float32"
    return tuple("int64" if a.kind == "integer" else dtype if a.role in base else leaf for a in composed.arguments)


def _programs(composed: Stack, dtypes: tuple[str, ...], device: str, m: int) -> tuple[Program, Program]:
    """With generated kernels, and of torch's operations alone."""
    trained = {s.leaf for s in composed.equations[0].leaves if s.trainable}
    wants = [leaf.role == "token" or leaf in trained for leaf in composed.arguments]
    task = task_of(composed, wants, device)
    many = plan(task)
    chosen = plan(replace(task, at=((TOKENS, m),), kept=many.kept, limit=None), departures(many))
    return assemble(chosen, composed, dtypes, generated=ALL), assemble(chosen, composed, dtypes)


def _beside(*sources: Source) -> dict[str, str]:
    """The files of functions that generated text calls."""
    return {f"{name}.py": inspect.getsource(BESIDE[name]) for name in _called(*sources)}


def _called(*sources: Source) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for source in sources:
        words = set(WORD.findall(source.text[source.text.index(f"def {source.name}(") :]))
        for name, module in BESIDE.items():
            mine = [f for f in sorted(words) if inspect.isfunction(getattr(module, f, None))]
            if mine:
                found[name] = sorted({*found.get(name, []), *mine})
    return found


def _file(source: Source) -> str:
    """A generated file, with what it imports from beside it."""
    text = source.text if source.kernels else f"import torch\nfrom torch.nn.functional import linear\n\n\n{source.text}"
    imports = [f"from .{name} import {', '.join(some)}" for name, some in _called(source).items()]
    if source.kernels and _calls_linear(source):
        imports.append("from torch.nn.functional import linear")
    head = "import torch\n"
    return text.replace(head, "\n".join([head.rstrip(), *imports]) + "\n", 1) if imports else text


def _calls_linear(source: Source) -> bool:
    """Does generated text call `linear`?"""
    return "linear" in WORD.findall(source.text)


INIT = '''"""{title}

Generated by adaptc. forward(x, ...) gives y and what is kept for backward; `apply` ties both to autograd.
"""

from pathlib import Path

import torch

from .backward import {backward}
from .forward import {forward}

ARGUMENTS = {arguments!r}
"""Names, sizes (m: tokens) and dtypes of what `apply` is given."""
_HERE = Path(__file__).parent
_FORWARD, _BACKWARD = torch.load(_HERE / "tables.pt", weights_only=True)
_TABLES = {{}}


def _tables(which, device):
    """Constants, once per device."""
    if (which, device) not in _TABLES:
        _TABLES[which, device] = tuple(t.to(device) for t in (_FORWARD, _BACKWARD)[which])
    return _TABLES[which, device]


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx, {names}):
        flat = x.reshape(-1, x.shape[-1])
        y, *kept = {forward}(_tables(0, x.device), {read})
        ctx.save_for_backward({saved}*kept)
        ctx.shape = x.shape
        return y.reshape(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gy):
        {saved}*kept = ctx.saved_tensors
        gy = gy.reshape(-1, gy.shape[-1])
        {gradients} = {backward}(_tables(1, gy.device), gy, {again}*kept)
        return {results}


def apply({names}):
    """The adapted layer: x (..., {k}) -> (..., {n}), with gradients of {wrt}."""
    return _Node.apply({names})
'''


def _init(composed: Stack, program: Program, dtypes: tuple[str, ...]) -> str:
    assert program.backward_source is not None
    names = [a.name.replace(".", "_of_") for a in composed.arguments]
    saved = [*(["x"] if program.saves_x else []), *(names[j] for j in program.saved)]
    results = ["None"] * len(names)
    for j in program.wrt:
        results[j] = f"g{j}" if j else "g0.reshape(ctx.shape)"
    return INIT.format(
        title=formula(composed.output),
        arguments=[(n, show(a.dims), d) for n, a, d in zip(names, composed.arguments, dtypes, strict=True)],
        names=", ".join(names),
        forward=program.forward_source.name,
        backward=program.backward_source.name,
        read=", ".join(["flat", *(names[j] for j in program.read)]),
        saved="".join(f"{s}, " for s in saved),
        again="".join("x.reshape(-1, x.shape[-1]), " if s == "x" else f"{s}, " for s in saved),
        gradients="".join(f"g{j}, " for j in program.wrt).rstrip(),
        results=", ".join(results),
        k=composed.k,
        n=composed.n,
        wrt=", ".join(names[j] for j in program.wrt),
    )


TEST = '''"""The package gives what the equation says: y and every gradient beside values computed in float64.

Run `python -m pytest` in this folder; without a GPU with TRITON_INTERPRET=1 in the environment.
"""

import os
from pathlib import Path

import pytest
import torch

from . import apply

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def test_y_and_gradients():
    if "{dtype}" == "bfloat16" and INTERPRETED:
        pytest.skip("Triton's interpreter calculates with the bits of bfloat16: a GPU is needed")
    device = "cpu" if INTERPRETED else "cuda"
    example = torch.load(Path(__file__).parent / "example.pt", weights_only=True)
    given = [t.to(device) for t in example["given"]]
    for j in example["wanted"]:
        given[j].requires_grad_()
    y = apply(*given)
    wanted = [given[j] for j in example["wanted"]]
    found = [y.detach(), *torch.autograd.grad(y, wanted, example["gy"].to(device))]
    for value, expected, bound in zip(found, example["expected"], example["bounds"], strict=True):
        assert value.shape == expected.shape
        assert float((value.double().cpu() - expected).norm()) <= bound
'''


def _example(composed: Stack, plain: Program, dtypes: tuple[str, ...]) -> dict[str, object]:
    """Arguments, y and gradients in float64, and what an error may be: twice that of torch's operations in the same
    dtype, and two units of rounding."""
    generator = torch.Generator().manual_seed(0)
    given = [t.to(getattr(torch, d)) for t, d in zip(_values(composed, generator), dtypes, strict=True)]
    gy = torch.randn(ROWS, int(composed.n), generator=generator).to(given[0].dtype)
    exact = assemble(plain.plan, composed, tuple("float64" if "int" not in d else d for d in dtypes))
    expected = _results(exact, [t.double() if t.is_floating_point() else t for t in given], gy.double())
    torchs = _results(plain, given, gy)
    eps = torch.finfo(given[0].dtype).eps
    bounds = [
        2 * float((t.double() - e).norm()) + 2 * eps * float(e.norm()) for t, e in zip(torchs, expected, strict=True)
    ]
    return {"given": given, "gy": gy, "wanted": list(plain.wrt), "expected": expected, "bounds": bounds}


def _values(composed: Stack, generator: torch.Generator) -> list[Tensor]:
    """Arguments of a call, trained leaves moved away from their initial values."""
    equation, (x, W, *bias) = composed.equations[0], composed.arguments[: 2 + composed.has_bias]
    weight = torch.randn(_size(W), generator=generator) / composed.k**0.5
    start = attach(equation, weight, Wholes())
    trained = {spec.name for spec in equation.leaves if spec.trainable}
    values = [torch.randn(_size(x), generator=generator), weight]
    values += [torch.randn(_size(b), generator=generator) for b in bias]
    for leaf in composed.leaves[0]:
        t = cut(start[leaf.name], leaf.dims)
        values.append(t + SPREAD * torch.randn(t.shape, generator=generator) if leaf.name in trained else t)
    rest = composed.arguments[len(values) :]
    return [*values, *(torch.zeros(_size(a), dtype=torch.int64 if a.kind == "integer" else None) for a in rest)]


def _size(a: Leaf) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else ROWS for d in a.dims)


def _results(program: Program, given: list[Tensor], gy: Tensor) -> list[Tensor]:
    y, *kept = program.forward(given[0], *(given[j] for j in program.read))
    saved = [*([given[0]] if program.saves_x else []), *(given[j] for j in program.saved)]
    return [y, *program.backward(gy, *saved, *kept)]


def _readme(bound: Adapter, composed: Stack, dtypes: tuple[str, ...], m: int, target: str) -> str:
    rows = [f"| {a.name} | {show(a.dims)} | {d} |" for a, d in zip(composed.arguments, dtypes, strict=True)]
    return "\n".join(
        [
            f"# {bound}", "", f"`{formula(composed.output)}`", "",
            f"Generated by adaptc: Triton kernels of a forward and a backward, planned for {m} tokens on {target}. "
            "Needs torch and triton.", "", "`apply` of the package takes, in this order:", "",
            "| argument | size | dtype |", "|---|---|---|", *rows, "",
            "The test beside it compares with float64: `python -m pytest` here; without a GPU set TRITON_INTERPRET=1.",
            "",
        ]
    )  # fmt: skip
