"""Every generated kernel of the catalogue, compiled ahead of time for GPUs that are not there.

`python tests/aot.py` compiles each distinct kernel (the same but for sizes is the same) for sm_80 and sm_90 and looks
at what came out: nothing may spill, shared memory must suffice, and a product of 16-bit tiles must use tensor cores.
`--everything` takes every tile size and gfx942 too; `--digest` only says what the sources are. Triton must not be in
its interpreter: a process can do one of both.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adaptc.case import Case
from adaptc.codegen.lower import SHORT
from adaptc.codegen.tile import Dot, every
from adaptc.codegen.tiles import names_of, scalars_of, tiles_of, warps_of
from adaptc.codegen.triton import render
from adaptc.codegen.triton_text import called
from adaptc.methods import catalogue
from adaptc.nn.linear import AdaptedLinear
from adaptc.plan.search import plan
from adaptc.runtime.generated import ALL
from adaptc.runtime.planning import task_of
from adaptc.runtime.program import assemble
from adaptc.runtime.stack import Stack
from adaptc.verify import accepted

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED = {80: 166_912, 90: 232_448, "gfx942": 65_536}
POINTERS = {"float32": "*fp32", "float64": "*fp64", "bfloat16": "*bf16", "float16": "*fp16", "int64": "*i64"}
SIZE = (512, 384)
PLAIN = ("reduction", "elementwise")
KINDS = ("product", "scatter", "system", "choice", *PLAIN)


def programs(dtype="bfloat16", some=()):
    """The generated sources of every method, or of some, forward and backward."""
    for name in some or catalogue():
        method = catalogue()[name]
        adapter = method()
        n, k = SIZE if _takes(adapter, SIZE) else accepted(adapter)[-1]
        case = Case(adapter, n, k)
        stack, dtypes = _signature(case, dtype)
        wants = tuple(a.role in ("token", "param") for a in stack.arguments)
        program = assemble(plan(task_of(stack, wants, "h200")), stack, dtypes, generated=ALL)
        for source in (program.forward_source, program.backward_source):
            if source is not None:
                yield name, source


def drawn(seed):
    """The kernels of an equation drawn at random, in float32."""
    from fuzzing import Case as Drawn
    from strategies import weight_form

    case = Drawn(weight_form, seed)
    dtypes = tuple("float32" if d == "float64" else d for d in case.dtypes)
    program = assemble(plan(task_of(case.stack, case.wants, "h200")), case.stack, dtypes, generated=ALL)
    sources = (program.forward_source, program.backward_source)
    return [(kernel, str(case)) for source in sources if source is not None for _, kernel in source.kernels]


def _takes(adapter, size):
    try:
        adapter.trace(*size)
    except Exception:
        return False
    return True


def _signature(case: Case, dtype: str) -> tuple[Stack, tuple[str, ...]]:
    import torch

    layer: AdaptedLinear = case.make(getattr(torch, dtype))
    stack = layer.stack(True)
    held = dict(zip(stack.arguments[1:], layer.tensors(), strict=False))
    dtypes = [dtype]
    for a in stack.arguments[1:]:
        whole = "int64" if a.kind == "integer" else dtype
        dtypes.append(str(held[a].dtype).removeprefix("torch.") if a in held else whole)
    return stack, tuple(dtypes)


def fingerprint(kernel, tiles):
    """What a kernel does, whatever its sizes."""
    text = re.sub(r"(?<![\w.])\d+(?![\w.])", "#", render(kernel, "kernel", tiles))
    text = re.sub(r"\d+\.\d+(e-?\d+)?", "#", text)
    return text, tuple(b.dtype for b in kernel.buffers)


def distinct(dtype="bfloat16"):
    """Kernels that differ in more than sizes, each with a method that has it; the first and largest of each."""
    found = {}
    for name, source in programs(dtype):
        for _, kernel in source.kernels:
            found.setdefault(fingerprint(kernel, tiles_of(kernel)), (kernel, name))
    return list(found.values())


@dataclass(frozen=True)
class Compiled:
    """What a compiler made of a kernel."""

    registers: int
    spills: int
    shared: int
    tensor_cores: int


def compile_kernel(kernel, target, tiles):
    """Compile for "sm_90" or "gfx942", and look at it."""
    text = render(kernel, "kernel", tiles)
    parts = ["import triton\nimport triton.language as tl\n", *called([text]), text]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.py"
        path.write_text("\n\n".join(parts))
        spec = importlib.util.spec_from_file_location("kernel", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        names = [*(b.name for b in kernel.buffers), *scalars_of(kernel), *names_of(kernel)]
        signature = {b.name: POINTERS[b.dtype] for b in kernel.buffers}
        signature |= dict.fromkeys(scalars_of(kernel), "i32") | dict.fromkeys(names_of(kernel), "constexpr")
        source = ASTSource(
            fn=module.kernel,
            signature=signature,
            constexprs={(names.index(t),): tiles[t] for t in names_of(kernel)},
            attrs={(j,): [["tt.divisibility", 16]] for j in range(len(kernel.buffers))},
        )
        amd = target.startswith("gfx")
        where = GPUTarget("hip", target, 64) if amd else GPUTarget("cuda", int(target[3:]), 32)
        made = triton.compile(
            source, target=where, options={"num_warps": warps_of(tiles), "num_stages": 2 if amd else 3}
        )
    if amd:
        found = re.search(r"\.vgpr_spill_count:\s+(\d+)", made.asm["amdgcn"])
        return Compiled(0, int(found.group(1)) if found else 0, made.metadata.shared, made.asm["amdgcn"].count("mfma"))
    return _looked_at(made.asm["cubin"], made.metadata.shared)


def _looked_at(cubin, shared):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = {"capture_output": True, "text": True, "check": True}
        usage = subprocess.run([TOOLS / "cuobjdump", "--dump-resource-usage", file.name], **run).stdout
        code = subprocess.run([TOOLS / "nvdisasm", "-c", file.name], **run).stdout
    registers = int(re.search(r"REG:(\d+)", usage).group(1))
    return Compiled(registers, len(re.findall(r"\b(?:STL|LDL)", code)), shared, len(re.findall(r"\bHG?MMA", code)))


def wrong(kernel, target, made):
    """What must not be, in words."""
    short = any(isinstance(s, Dot) and s.a.dtype in SHORT for s in every(kernel.body))
    limit = SHARED[int(target[3:]) if target.startswith("sm_") else target]
    if made.spills:
        yield f"{made.spills} spills"
    if made.shared > limit:
        yield f"{made.shared} bytes of shared memory, {limit} there are"
    if short and not made.tensor_cores:
        yield "no tensor cores"


def sweep(kernel):
    """Every choice of tile sizes beside the default one."""
    usual = tiles_of(kernel)
    short = any(isinstance(s, Dot) and s.a.dtype in SHORT for s in every(kernel.body))
    names = [t for t in usual if t[0] in "RCK" and usual[t] >= 64] if short else []
    yield usual
    for sizes in itertools.product((32, 64, 128), repeat=len(names)):
        tiles = {**usual, **dict(zip(names, sizes, strict=True))}
        if tiles != usual and sizes.count(128) < 3:
            yield tiles


def _one(job):
    (kernel, name), target, tiles = job
    try:
        made = compile_kernel(kernel, target, tiles)
    except Exception as error:
        return kernel.kind, name, target, None, [f"{type(error).__name__}: {str(error)[:200]}"]
    return kernel.kind, name, target, made, list(wrong(kernel, target, made))


@click.command()
@click.option("--target", "targets", multiple=True, default=("sm_90", "sm_80"), show_default=True)
@click.option("--most", default=300, show_default=True, help="Compilations; sums and elementwise kernels last.")
@click.option("--everything", is_flag=True, help="Every tile size, and gfx942.")
@click.option("--workers", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True)
@click.option("--digest", is_flag=True, help="Compile nothing; print a digest of all sources.")
@click.option("--drawn", "seed", type=int, help="Not the catalogue: an equation drawn with this seed.")
@click.option("--method", "some", multiple=True, help="For the digest: of these alone.")
def main(targets, most, everything, workers, as_json, digest, seed, some):
    """Compile, look, and report per kind of step; exit code 1 if anything is wrong."""
    if digest:
        click.echo(hashlib.sha256("".join(source.text for _, source in programs(some=some)).encode()).hexdigest())
        return
    kernels = distinct() if seed is None else drawn(seed)
    if everything:
        targets, most = (*targets, "gfx942"), sys.maxsize
    jobs = [
        (found, target, tiles)
        for target in targets
        for found in kernels
        for tiles in (sweep(found[0]) if everything else [tiles_of(found[0])])
    ]
    jobs.sort(key=lambda job: job[0][0].kind in PLAIN)
    with ProcessPoolExecutor(workers) as pool:
        found = list(pool.map(_one, jobs[:most], chunksize=4))
    counts = Counter(kernel.kind for kernel, _ in kernels)
    problems = [f"{name} {kind} {target}: {w}" for kind, name, target, _, words in found for w in words]
    problems += [f"no kernel of kind '{kind}'" for kind in KINDS if not counts[kind] and seed is None]
    if as_json:
        click.echo(json.dumps({"kinds": counts, "compiled": len(found), "of": len(jobs), "problems": problems}))
    else:
        table = Table("kind", "kernels", "compiled", "most registers", box=None)
        for kind in KINDS:
            mine = [f[3] for f in found if f[0] == kind and f[3] is not None]
            table.add_row(kind, str(counts[kind]), str(len(mine)), str(max((m.registers for m in mine), default=0)))
        Console().print(table)
        click.echo("\n".join([f"{len(found)} compilations of {len(jobs)}", *problems]))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
