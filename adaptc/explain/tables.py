"""The tables of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

SHOWN = 6  # candidates


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for c in columns:
        table.add_column(c, justify="right" if c in ("flops", "bytes", "over the base product") else "left")
    return table


def cost_table(f: Mapping[str, Any]) -> Table:
    """What the base product, forward and backward cost."""
    c, seconds = f["cost"], f["seconds"]
    table = _table("FLOPs", "", "flops", "over the base product", f"predicted at {seconds['rows']} tokens")
    table.add_row("base product x W^T", big(c["base"]), "1", "")
    table.add_row("forward", big(c["forward"]), str(c["forward over base"]), time(seconds["forward"]))
    table.add_row("backward", big(c["backward"]), str(c["backward over base"]), time(seconds["backward"]))
    return table


def kept_table(f: Mapping[str, Any]) -> Table:
    """What is kept for backward, and why."""
    k = f["kept"]
    table = _table(
        f"\nKept for backward: {big(k['bytes'])} bytes, {k['over x']} x the bytes of x",
        "tensor",
        "shape",
        "dtype",
        "bytes",
        "why",
    )
    for e in k["tensors"]:
        table.add_row(e["tensor"], shape(e["shape"]), e["dtype"], big(e["bytes"]), e["reason"])
    return table


def step_table(f: Mapping[str, Any]) -> Table:
    """The plan, one step a row."""
    table = _table("\nPlan", "#", "way", "step", "shape", "flops", "time", "side", "by", "value")
    for s in f["steps"]:
        table.add_row(
            str(s["number"]),
            s["way"],
            s["step"],
            shape(s["shape"]),
            big(s["flops"]),
            time(s["seconds"]),
            s["side"],
            s["by"],
            s["value"],
        )
    return table


def kernel_tables(f: Mapping[str, Any]) -> list[Table]:
    """On a GPU: each part as one generated kernel, and as steps of torch."""
    if not f["kernels"]:
        return []
    title = f"\nKernels: one generated, or torch's, predicted at {f['seconds']['rows']} tokens"
    table = _table(title, "way", "reads", "generated", "torch", "by", "value")
    for r in f["kernels"]:
        none = r["kernel seconds"] is None
        both = ("no kernel" if none else time(r["kernel seconds"]), time(r["torch seconds"]))
        table.add_row(r["way"], str(r["reads"]), *both, r["by"], r["value"])
    return [table]


def choice_table(f: Mapping[str, Any]) -> Table:
    """What was chosen from what."""
    table = _table("\nChoices", "where", "chosen", "from")
    for c in f["choices"]:
        purpose = f" for {c['purpose']}" if c["purpose"] else ""
        table.add_row(c["where"] + purpose, c["chosen"], ", ".join(c["options"]))
    return table


def tokens_table(f: Mapping[str, Any]) -> Table:
    """Where in the number of tokens the plan changes."""
    table = _table("\nPlans by the number of tokens", "m", "forward", "backward", "form")
    for r in f["by tokens"]:
        ways = (f"{r[f'{way} over base']} x at m = {r['at']}" for way in ("forward", "backward"))
        table.add_row(f"{r['from']:,} to {r['to']:,}", *ways, "; ".join(f"{k}: {v}" for k, v in r["forms"].items()))
    return table


def rivals_table(f: Mapping[str, Any]) -> Table:
    """The plans that predictions put next to the chosen one."""
    every, rows = f["candidates"], f["ranked at"]
    table = _table(
        f"\nCandidates: {min(SHOWN, len(every))} of {len(every)} considered, by predicted time at {rows} tokens",
        "time",
        "forward",
        "backward",
        "form",
    )
    for r in every[:SHOWN]:
        mark = " (chosen)" if r["chosen"] else ""
        table.add_row(
            time(r["predicted seconds"]),
            time(r["forward seconds"]),
            time(r["backward seconds"]),
            "; ".join(f"{k}: {v}" for k, v in r["form"].items()) + mark,
        )
    return table


def shape(sizes: list[str]) -> str:
    """Sizes in brackets."""
    return f"({', '.join(sizes)})"


def big(amount: Any) -> str:
    """A number in groups of three digits; a formula as it is."""
    return f"{amount:,}" if isinstance(amount, int) else str(amount)


def time(seconds: float) -> str:
    """Seconds in the unit that fits: s, ms or us."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
