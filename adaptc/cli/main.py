"""Commands and exit codes: 0 done, 1 a law failed or the equation is refused, 2 wrong usage."""

from __future__ import annotations

import functools
import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from adaptc.cli.method import bind, find_method
from adaptc.emit import DTYPES, TARGETS, emit_package
from adaptc.env import CALIBRATED
from adaptc.errors import AdaptcError, HyperparameterError
from adaptc.explain import compare
from adaptc.explain import explain as explain_adapter
from adaptc.explain.compare import compare_table
from adaptc.explain.tree import plan_tree
from adaptc.method import Method, symbolic
from adaptc.methods import catalogue
from adaptc.plan.device import DEVICES
from adaptc.timing import measure
from adaptc.tune import calibrate
from adaptc.verify import verify as verify_adapter

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
settings = click.option(
    "-s",
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A hyper-parameter; repeatable.",
)


def _say(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, default=str))


def reported(command: Callable[..., Any]) -> Callable[..., Any]:
    """Errors of adaptc as one message and exit code 1; wrong hyper-parameters as wrong usage."""

    @functools.wraps(command)
    def run(*args: Any, as_json: bool = False, **kwargs: Any) -> Any:
        try:
            return command(*args, as_json=as_json, **kwargs)
        except HyperparameterError as error:
            raise click.UsageError(str(error)) from error
        except AdaptcError as error:
            if as_json:
                _say(
                    {
                        "passed": False,
                        "error": type(error).__name__,
                        "law": getattr(error, "law", None),
                        "message": str(error),
                    }
                )
            else:
                click.echo(f"{type(error).__name__}: {error}", err=True)
            sys.exit(1)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="adaptc")
def main() -> None:
    """adaptc compiles adapters: a method is the equation of its adapted weight.

    METHOD is a name from `adaptc list`, or FILE.py:method for a method of your own.
    """


def _row(method: Method) -> dict[str, Any]:
    text, equation = symbolic(method())
    doc = " ".join((method.__doc__ or "").split())
    found = re.search(r"arXiv:\d{4}\.\d{4,5}", doc)
    source = found.group() if found else doc.partition("Source: ")[2].partition(".")[0].partition(",")[0]
    trained = [f"{s.name} {tuple(map(str, s.leaf.dims))}".replace("'", "") for s in equation.leaves if s.trainable]
    return {
        "name": method.name, "equation": text, "source": source, "parameters": trained,
        "hyper": dict(method.defaults), "form": "output" if equation.is_output_form else "weight", "doc": doc,
    }  # fmt: skip


@main.command("list")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@as_json
@reported
def list_methods(as_json: bool, markdown: bool) -> None:
    """List the catalogue: name, equation, source, trained leaves."""
    rows = [_row(m) for m in catalogue().values()]
    if markdown and as_json:
        raise click.UsageError("choose --markdown or --json")
    if markdown:
        click.echo(markdown_table(rows))
        return
    if as_json:
        _say(rows)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "equation", "source", "trained"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row["name"], row["equation"], row["source"], ", ".join(row["parameters"]))
    Console(highlight=False).print(table)


def _device(context: click.Context, parameter: click.Parameter, name: str) -> str:
    """A device that there is, or what may be the path of a calibration file."""
    if name not in DEVICES and name != CALIBRATED and ".json" not in name:
        known = ", ".join((*DEVICES, CALIBRATED))
        raise click.BadParameter(f"'{name}' is none of {known}, and no calibration file (.json)")
    return name


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Name, equation and source as Markdown."""
    lines = ["| method | equation | source |", "|---|---|---|"]
    for row in rows:
        text = row["equation"].partition("    [")[0]
        short = text if len(text) <= 68 else text[:65] + "..."
        lines.append(f"| {row['name']} | `{short}` | {row['source']} |")
    return "\n".join(lines)


@main.command()
@click.argument("method")
@click.option("--n", type=click.IntRange(1), help="Outputs of the layer; a symbol if left out.")
@click.option("--k", type=click.IntRange(1), help="Inputs of the layer; a symbol if left out.")
@click.option("--m", type=click.IntRange(0), help="Tokens; a symbol if left out.")
@click.option(
    "--dtype",
    default="float32",
    type=click.Choice(["float32", "float64", "bfloat16", "float16"]),
    help="Of x.",
)
@click.option(
    "--device",
    default="cpu",
    callback=_device,
    metavar=f"[{'|'.join(DEVICES)}|calibrated|FILE.json]",
    help="Whose rates rank the plans: shipped, of this machine as `adaptc tune` measured it, or of such a file.",
)
@click.option("--mode", default="train", type=click.Choice(["train", "eval"]))
@click.option(
    "--max-saved",
    callback=lambda ctx, param, value: int(value) if value and value.isdigit() else value,
    metavar="[BYTES|1.5x]",
    help="The most that may be kept for backward: bytes at m tokens, or how often the bytes of x.",
)
@click.option(
    "--tree", is_flag=True, help="Draw the plan as a tree: one line a step. With --json: `reads` of each step."
)
@click.option(
    "--compare",
    "others",
    multiple=True,
    metavar="METHOD",
    help='Another method beside it, with settings as in "lora r=16"; repeatable.',
)
@settings
@as_json
@reported
def explain(
    method: str, settings: tuple[str, ...], as_json: bool, tree: bool, others: tuple[str, ...], **sizes: Any
) -> None:
    """Show formula, parameters, FLOPs, what is kept for backward and why, and the plan.

    \b
    Examples:
      adaptc explain boft --n 1024 --k 768 --m 512 -s stages=3
      adaptc explain boft --n 1024 --k 768 --m 512 --tree
      adaptc explain boft --n 1024 --k 768 --m 512 --compare lora --compare "oft b=64"
    """
    if tree and others:
        raise click.UsageError("choose --tree or --compare")
    chosen = [(method, settings), *(_named(other) for other in others)]
    reports = [explain_adapter(bind(find_method(name), given), **sizes) for name, given in chosen]
    if others:
        rows = compare(reports)
        shown: Any = rows if as_json else compare_table(rows)
    else:
        shown = reports[0].to_dict() if as_json else plan_tree(reports[0].facts) if tree else reports[0]
    if as_json:
        _say(shown)
    else:
        Console(highlight=False).print(shown)


def _named(text: str) -> tuple[str, tuple[str, ...]]:
    """`lora r=16`: a METHOD and its settings."""
    try:
        name, *given = shlex.split(text) or [""]
    except ValueError as error:
        raise click.UsageError(f"cannot read {text}: {error}") from error
    return name, tuple(given)


@main.command()
@click.argument("method")
@click.option("--n", type=click.IntRange(1), help="Check this size only (with --k).")
@click.option("--k", type=click.IntRange(1), help="Check this size only (with --n).")
@settings
@as_json
@reported
def verify(method: str, n: int | None, k: int | None, settings: tuple[str, ...], as_json: bool) -> None:
    """Hold a method to the whole contract; print the law that fails, with the smallest failing example.

    Example: adaptc verify my_methods.py:my_method
    """
    if (n is None) != (k is None):
        raise click.UsageError("give both --n and --k, or neither")
    verdict = verify_adapter(bind(find_method(method), settings), n, k)
    if as_json:
        _say(verdict.to_dict())
    else:
        Console(highlight=False).print(verdict)


@main.command()
@click.argument("method")
@click.option("--n", default=1024, show_default=True, type=click.IntRange(1), help="Outputs of the layer.")
@click.option("--k", default=1024, show_default=True, type=click.IntRange(1), help="Inputs of the layer.")
@click.option("--m", default=512, show_default=True, type=click.IntRange(1), help="Tokens of a training step.")
@click.option("--dtype", default="float32", type=click.Choice(["float32", "bfloat16"]), help="Of x and W.")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1), help="Of which the median is taken.")
@settings
@as_json
@reported
def bench(
    method: str, n: int, k: int, m: int, dtype: str, rounds: int, settings: tuple[str, ...], as_json: bool
) -> None:
    """Time a method on this machine's CPU beside LoRA and the frozen linear.

    A training step is a forward and a backward with the gradients of x and of the adapter, a decoding step a forward of
    one token without gradients. One thread, process time, medians of interleaved rounds.

    Example: adaptc bench my_methods.py:my_method --n 768 --k 768
    """
    ours = bind(find_method(method), settings)
    found = measure({"lora r=8": catalogue()["lora"](), str(ours): ours}, n, k, m, dtype, rounds)
    if as_json:
        _say(found.to_dict())
    else:
        Console(highlight=False).print(found)


@main.command()
@click.argument("method")
@click.option("--n", required=True, type=click.IntRange(1), help="Outputs of the layer.")
@click.option("--k", required=True, type=click.IntRange(1), help="Inputs of the layer.")
@click.option("--m", default=1024, show_default=True, type=click.IntRange(1), help="Tokens it is planned for.")
@click.option("--dtype", default="bfloat16", show_default=True, type=click.Choice(DTYPES), help="Of x and W.")
@click.option("--target", default="sm_90", show_default=True, type=click.Choice([*TARGETS]), help="The GPU.")
@click.option("--out", required=True, type=click.Path(file_okay=False), help="A new folder.")
@settings
@as_json
@reported
def emit(method: str, settings: tuple[str, ...], as_json: bool, out: str, **given: Any) -> None:
    """Write a method's generated Triton kernels as a package that needs torch and triton alone, with a test in it.

    Example: adaptc emit dora --n 4096 --k 4096 --m 8192 --out dora_kernels
    """
    found = emit_package(bind(find_method(method), settings), out=out, **given)
    if as_json:
        _say({"folder": str(found.folder), "files": found.files, "kernels": found.kernels, "left": found.left})
        return
    click.echo(f"{found.folder}: {', '.join(found.files)}\n{found.kernels} kernels")
    for line in found.left:
        click.echo(f"left to torch: {line}")


@main.command()
@click.option("--calibrate", "asked", is_flag=True, help="Measure this machine's CPU, and its GPU if there is one.")
@click.option(
    "--seconds",
    default=20.0,
    show_default=True,
    type=click.FloatRange(0, 3600, min_open=True),
    help="About how long to measure each of them.",
)
@as_json
@reported
def tune(asked: bool, seconds: float, as_json: bool) -> None:
    """Measure this machine for the planner.

    --calibrate measures rates of products, copies and calls and writes them to a file in the user's cache folder. They
    are used only where they are asked for: with ADAPTC_DEVICE=calibrated in the environment, or by `adaptc explain
    --device calibrated`. Without either, plans are the same on every machine.
    """
    if not asked:
        raise click.UsageError("say what to tune: --calibrate measures this machine, and is all there is today")
    found = calibrate(seconds)
    if as_json:
        _say(found.to_dict())
        return
    Console(highlight=False).print(found)
    click.echo(f"\nwritten: {found.path}")


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.option("--out", default="demo-output", help="Folder to fill.")
@as_json
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(out: str, as_json: bool, arguments: tuple[str, ...]) -> None:
    """Fine-tune a real encoder once per family of methods and compare (examples/finetune_encoder.py).

    Takes that example's options; `adaptc demo --help` shows them. Needs a checkout and the extra `demo`. With --json
    the table goes to standard error and its rows to standard output.
    """
    example = Path(__file__).resolve().parents[2] / "examples" / "finetune_encoder.py"
    if not example.is_file():
        raise click.ClickException("the demo is part of a checkout: clone the repository and run `make demo`")
    sys.argv = ["adaptc demo", "--out", out, *arguments]
    sys.path.insert(0, str(example.parent))
    try:
        with redirect_stdout(sys.stderr if as_json else sys.stdout):
            runpy.run_path(str(example), run_name="__main__")
    except ModuleNotFoundError as error:
        raise click.ClickException(f"the demo needs '{error.name}': pip install 'adaptc[demo]'") from error
    except SystemExit as done:
        if as_json and not done.code:
            click.echo(next(Path(out).glob("*.json")).read_text(encoding="utf-8"))
        raise
