"""Reports side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from adaptc.explain.report import Report
from adaptc.explain.tables import big, time

TIMES = ("forward seconds", "backward seconds")


def compare(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """One row of plain values a report, ready for JSON: what it costs and which forms were chosen.

    parameters, flops and bytes are numbers, or formulas where sizes are symbols; "over base" is FLOPs in products over
    those of x W^T, "over x" bytes over those of x; seconds are predictions at `rows` tokens.
    """
    return [_row(r.facts) for r in reports]


def _row(f: Mapping[str, Any]) -> dict[str, Any]:
    cost, kept, seconds = f["cost"], f["kept"], f["seconds"]
    return {
        **{name: f[name] for name in ("adapter", "formula", "n", "k", "m", "dtype", "device", "mode", "parameters")},
        "forward flops": cost["forward"],
        "forward over base": cost["forward over base"],
        "backward flops": cost["backward"],
        "backward over base": cost["backward over base"],
        "bytes kept": kept["bytes"],
        "kept over x": kept["over x"],
        "steps": len(f["steps"]),
        "rows": seconds["rows"],
        "forward seconds": seconds["forward"],
        "backward seconds": seconds["backward"],
        "forms": dict(f["forms"]),
    }


def compare_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of `compare` as columns of one table."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for row in rows:
        table.add_column(row["adapter"], justify="right", overflow="fold")
    for name in rows[0]:
        if name not in ("adapter", "forms"):
            table.add_row(name, *(_cell(name, row[name]) for row in rows))
    table.add_row("forms", *("\n".join(f"{k}: {v}" for k, v in row["forms"].items()) or "-" for row in rows))
    return table


def _cell(name: str, value: Any) -> str:
    return time(value) if name in TIMES else big(value)
