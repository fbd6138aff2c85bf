"""What the demo measures of memory, its table on the terminal, and the same as PNG and JSON."""

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Row = dict[str, Any]
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {  # key in a row: heading, how it is shown
    "method": ("method", str),
    "equation": ("equation", str),
    "trainable_parameters": ("trainable\nparameters", "{:,}".format),
    "accuracy_before": ("accuracy\nbefore", "{:.1%}".format),
    "accuracy_after": ("accuracy\nafter", "{:.1%}".format),
    "seconds_per_step": ("seconds\nper step", "{:.3f}".format),
    "bytes_kept_for_backward": ("kept for\nbackward", lambda amount: f"{amount / 1e6:,.1f} MB"),
}
PANELS = ("accuracy_after", "accuracy_before"), ("seconds_per_step",), ("bytes_kept_for_backward",)


def bytes_kept(model: nn.Module, tokens: dict[str, Tensor], labels: Tensor) -> int:
    """What the forward of one step keeps for backward, beside parameters and buffers."""
    kept = {}  # by address; storages are held, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        cross_entropy(model(tokens), labels)
    owned = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    return sum(storage.nbytes() for address, storage in kept.items() if address not in owned)


def report(rows: list[Row], out: Path) -> None:
    """Print the rows; write finetune_encoder.png and finetune_encoder.json in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "finetune_encoder.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    _figure(rows).savefig(out / "finetune_encoder.png", dpi=150)
    console, apart = Console(), max(row["merged_logits_differ_by"] for row in rows)
    console.print(_table(rows))
    console.print(f"Merged and unmerged logits differ by {apart:.1e} at most.")
    console.print(f"The same is in {out}: finetune_encoder.json, finetune_encoder.png.")


def _table(rows: list[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for key, (heading, _) in COLUMNS.items():
        text = isinstance(rows[0][key], str)
        table.add_column(heading, justify="left" if text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(show(row[key]) for key, (_, show) in COLUMNS.items()))
    return table


def _figure(rows: list[Row]) -> Figure:
    """One panel of bars for the accuracies, one for the time, one for the memory."""
    figure = Figure(figsize=(12, 1.5 + 0.6 * len(rows)), layout="constrained")
    names = [_name(row) for row in rows]
    for axis, keys in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS, strict=True):
        for key, colour in zip(keys, ("lightsteelblue", "sandybrown"), strict=False):
            heading, show = COLUMNS[key]
            bars = axis.barh(names, [row[key] for row in rows], color=colour)
            axis.bar_label(bars, labels=[show(row[key]) for row in rows], padding=2)
            bars.set_label(heading.replace("\n", " "))
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
        axis.margins(x=0.35)
        axis.xaxis.set_visible(False)
    figure.axes[0].invert_yaxis()  # the order of the table
    return figure


def _name(row: Row) -> str:
    equation = "\n".join(textwrap.wrap(row["equation"], 44))
    return f"{row['method']}, {row['trainable_parameters']:,} parameters\n{equation}"
