"""The price of a small call: a layer of 64 x 64 with LoRA r = 8 on one token, beside PEFT, in one run.

`python -m bench overhead` prints a table of microseconds and writes bench/results/overhead_cpu.json. A step is a
forward and a backward with the gradients of x and of the adapter. "eager" is the same equation in plain torch; "by
hand" the fewest torch calls that compute it in an autograd Function, without a module; "empty node" a Function that
computes nothing: no Function can cost less.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import peft
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import adaptc as ac
from adaptc.methods import lora
from bench.measuring import interleaved, write

WIDTH, RANK, ROUNDS, REPEAT = 64, 8, 200, 50


class ByHand(torch.autograd.Function):
    """LoRA with every call that can be spared left out; the scale is 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, bias: Tensor, A: Tensor, B: Tensor) -> Tensor:
        h = F.linear(x, A)
        ctx.save_for_backward(x, W, A, B, h)
        return F.linear(x, W, bias).addmm_(h, B.t(), alpha=2.0)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, W, A, B, h = ctx.saved_tensors
        t = gy.mm(B).mul_(2.0)
        gx = gy.mm(W).addmm_(t, A) if ctx.needs_input_grad[0] else None
        return gx, None, None, t.t().mm(x), gy.t().mm(h).mul_(2.0)


class Empty(torch.autograd.Function):
    """What a Function costs by itself, with results made beforehand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, A: Tensor, B: Tensor) -> Tensor:
        ctx.save_for_backward(x, A, B)
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B = ctx.saved_tensors
        return (gy if ctx.needs_input_grad[0] else None), None, A.detach(), B.detach()


def layers() -> dict[str, Callable[[Tensor], Tensor]]:
    """The same layer by everyone, with the same trained leaves."""
    torch.manual_seed(0)
    plain = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    ours = ac.AdaptedLinear(plain, lora(r=RANK, alpha=16.0))
    with torch.no_grad():
        ours.leaves()["B"].normal_()
    model = nn.ModuleDict({"lin": nn.Linear(WIDTH, WIDTH)})
    model["lin"].load_state_dict({"weight": plain.weight, "bias": plain.bias})
    config = peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=["lin"])
    theirs: Any = peft.inject_adapter_in_model(config, model)["lin"]
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(ours.leaves()["A"])
        theirs.lora_B["default"].weight.copy_(ours.leaves()["B"])
    A, B = (nn.Parameter(ours.leaves()[name].detach().clone()) for name in "AB")

    def eager(x: Tensor) -> Tensor:
        return F.linear(x, plain.weight, plain.bias) + 16.0 / RANK * F.linear(F.linear(x, A), B)

    bare = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    made = torch.zeros(1, WIDTH)
    return {
        "adaptc": ours,
        "peft": theirs,
        "eager": eager,
        "by hand": lambda x: ByHand.apply(x, plain.weight, plain.bias, A, B),
        "empty node": lambda x: Empty.apply(x, made, A, B),
        "frozen linear": bare,
    }


@click.command()
def main() -> None:
    """Measure a small call of LoRA beside PEFT, by hand and eager."""
    torch.set_num_threads(1)
    every = layers()
    x, gy = torch.randn(1, WIDTH), torch.randn(1, WIDTH)
    for name in ("peft", "eager", "by hand"):
        torch.testing.assert_close(every["adaptc"](x), every[name](x))
    leaf = x.clone().requires_grad_()
    found: dict[str, dict[str, float]] = {}
    for what, inputs in (("step", leaf), ("step, x without a gradient", x)):
        trained = {n: f for n, f in every.items() if what == "step" or n != "frozen linear"}
        steps = {n: (lambda f=f, v=inputs: f(v).backward(gy)) for n, f in trained.items()}
        found[what] = interleaved(steps, ROUNDS, REPEAT, time.perf_counter_ns)
    with torch.no_grad():
        found["forward alone"] = interleaved({n: (lambda f=f: f(x)) for n, f in every.items()}, ROUNDS, REPEAT)
    print(f"{'':28}" + "".join(f"{n:>15}" for n in every) + f"{'over peft':>12}")
    for what, times in found.items():
        cells = "".join(f"{times[n]:15.1f}" if n in times else f"{'':15}" for n in every)
        print(f"{what:28}{cells}{times['adaptc'] / times['peft']:12.2f}")
    rounded = {what: {n: round(t, 2) for n, t in times.items()} for what, times in found.items()}
    write("overhead_cpu", peft=peft.__version__, shape=[1, WIDTH, WIDTH], rank=RANK, microseconds=rounded)


if __name__ == "__main__":
    main()
