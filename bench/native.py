"""Native kernels against torch, one thread: blocks along the diagonal, forward and both gradients, dropout masks, and
whole steps of layers whose plan has such products.

`python -m bench native` prints a table of microseconds and writes bench/results/native_cpu.json. Rounds are
interleaved, times are medians of process time, and nothing is timed before it was compared with float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import torch
from torch import Tensor, nn

import adaptc as ac
from adaptc import _native
from adaptc.methods import boft, oft
from adaptc.plan.search import plan
from adaptc.runtime import native
from adaptc.runtime.ops import dtypes_of
from adaptc.runtime.planning import task_of
from adaptc.runtime.program import assemble, kernels
from bench.measuring import interleaved, write

TOKENS, WIDTH, ROUNDS = 512, 768, 60
Pair = tuple[Callable[[], Tensor], Callable[[], Tensor]]


def products(b: int, dtype: torch.dtype) -> dict[str, tuple[Pair, Tensor]]:
    """Each product: ours, torch's, and its value in float64."""
    g = WIDTH // b
    x, gy = torch.randn(TOKENS, g, b).to(dtype), torch.randn(TOKENS, g, b).to(dtype)
    R = torch.randn(g, b, b).to(dtype)
    wide = x.double(), gy.double(), R.double()
    return {
        "y": (
            (lambda: native.blocks_apply(x, R), lambda: torch.einsum("mgi,gij->mgj", x, R)),
            torch.einsum("mgi,gij->mgj", wide[0], wide[2]),
        ),
        "gx": (
            (lambda: native.blocks_apply(gy, R, True), lambda: torch.einsum("mgj,gij->mgi", gy, R)),
            torch.einsum("mgj,gij->mgi", wide[1], wide[2]),
        ),
        "gR": (
            (lambda: native.blocks_gradient(x, gy, dtype), lambda: torch.einsum("mgi,mgj->gij", x, gy)),
            torch.einsum("mgi,mgj->gij", wide[0], wide[1]),
        ),
    }


def verify(pair: Pair, exact: Tensor) -> None:
    """Our error is at most twice torch's, and a rounding."""
    ours, theirs = ((f().double() - exact).norm() / exact.norm() for f in pair)
    eps = torch.finfo(pair[0]().dtype).eps
    if not ours <= 2 * theirs + eps:
        raise SystemExit(f"wrong numbers: error {ours:.1e}, torch's {theirs:.1e}")


def measure(pair: Pair) -> dict[str, float]:
    """Medians in microseconds, rounds interleaved."""
    found = interleaved(dict(zip(("native_us", "aten_us"), pair, strict=True)), ROUNDS)
    rounded = {name: round(t, 1) for name, t in found.items()}
    return {**rounded, "ratio": round(found["native_us"] / found["aten_us"], 3)}


def steps(adapter: ac.Adapter, dtype: torch.dtype) -> Pair:
    """A training step of a layer, its plan with compiled kernels and with torch alone; both checked in float64."""
    layer = ac.AdaptedLinear(nn.Linear(WIDTH, WIDTH).to(dtype).requires_grad_(False), adapter)
    with torch.no_grad():
        for p in layer.adapters.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    gy, tensors, composed = torch.randn(TOKENS, WIDTH).to(dtype), layer.tensors(), layer.stack(training=True)
    wants = [t.requires_grad for t in (x, *tensors)]
    chosen = plan(task_of(composed, wants, "cpu"))
    programs = [assemble(chosen, composed, dtypes_of([x, *tensors]), k) for k in (kernels("cpu"), None)]
    assert "native" in programs[0].forward_source.text
    wrt = [t for t in (x, *tensors) if t.requires_grad]

    def step(program: Any) -> Tensor:
        found = torch.autograd.grad(program.call(x, *tensors), wrt, gy)
        return torch.cat([g.flatten() for g in found])

    pair = (lambda: step(programs[0]), lambda: step(programs[1]))
    wide = assemble(chosen, composed, ["float64"] * len(wants))
    big = [t.detach().double().requires_grad_(w) for t, w in zip((x, *tensors), wants, strict=True)]
    exact = torch.autograd.grad(wide.call(*big), [t for t in big if t.requires_grad], gy.double())
    verify(pair, torch.cat([g.flatten() for g in exact]))
    return pair


@click.command()
def main() -> None:
    """Measure native kernels beside torch. The rows of oft and boft are whole training steps, through the plan."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    print(f"{'what':6} {'b':>3} {'dtype':9} {'native us':>10} {'aten us':>10} {'ratio':>6}")

    def add(what: str, b: int, dtype: torch.dtype, pair: Pair) -> None:
        found = measure(pair)
        rows.append({"what": what, "b": b, "dtype": str(dtype).removeprefix("torch."), **found})
        r = rows[-1]
        print(f"{what:6} {b:3} {r['dtype']:9} {r['native_us']:10} {r['aten_us']:10} {r['ratio']:6.2f}")

    for dtype in (torch.float32, torch.bfloat16):
        for b in (2, 4, 8, 16, 32, 64, 128):
            for what, (pair, exact) in products(b, dtype).items():
                verify(pair, exact)
                add(what, b, dtype, pair)
        add("mask", 0, dtype, masks(dtype))
        for b in (4, 32):
            add("oft", b, dtype, steps(oft(b=b), dtype))
            add("boft", b, dtype, steps(boft(b=b), dtype))
    sizes = {"tokens": TOKENS, "width": WIDTH, "rounds": ROUNDS}
    write("native_cpu", instructions=_native.levels()[-1], sizes=sizes, rows=rows)


def masks(dtype: torch.dtype) -> Pair:
    """A dropout mask as large as x."""
    seed, shape = torch.tensor(1), (TOKENS, WIDTH)
    return (
        lambda: native.bernoulli(seed, 0, 0.1, shape, dtype),
        lambda: torch.empty(shape, dtype=dtype).bernoulli_(0.9),
    )


if __name__ == "__main__":
    main()
