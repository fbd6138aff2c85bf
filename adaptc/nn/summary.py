"""What adapters a model carries, and what they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table
from torch import nn

from adaptc.console import rendered
from adaptc.nn.inject import adapter_parameters
from adaptc.nn.linear import AdaptedLinear, adapted_layers
from adaptc.nn.siblings import companions


@dataclass(frozen=True)
class Summary:
    """One row a layer: name, sizes, adapters (active first), trained parameters, frozen entries, state, bytes of
    originals kept for unmerging, bytes held from the last call without gradients and for siblings that were not called
    yet, the siblings whose projections were last computed with its own. Shared leaves count once in the totals."""

    rows: tuple[dict[str, Any], ...]
    trainable: int
    parameters: int
    original_bytes: int
    held_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "layers": list(self.rows),
            "trainable": self.trainable,
            "parameters": self.parameters,
            "original bytes": self.original_bytes,
            "held bytes": self.held_bytes,
        }

    def __str__(self) -> str:
        return rendered(self)

    def __rich__(self) -> Table:
        title = f"{len(self.rows)} adapted layers, {self.trainable:,} of {self.parameters:,} parameters trained"
        if self.original_bytes:
            title += f"; {self.original_bytes:,} bytes kept for unmerging"
        if self.held_bytes:
            title += f"; {self.held_bytes:,} bytes held between calls without gradients"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for column in ("layer", "n x k", "adapters", "trained", "state"):
            table.add_column(column, overflow="fold")
        for r in self.rows:
            state = r["state"] + (f", with {' and '.join(r['siblings'])}" if r["siblings"] else "")
            table.add_row(r["layer"], f"{r['n']} x {r['k']}", ", ".join(r["adapters"]), f"{r['trained']:,}", state)
        return table


def summary(model: nn.Module) -> Summary:
    """The adapters of a model, layer by layer. A model without any gives an empty one."""
    others = dict(companions(model))
    rows = tuple(_row(name, layer, others[name]) for name, layer in adapted_layers(model))
    trained = sum(p.numel() for p in adapter_parameters(model))
    original, held = (sum(r[key] for r in rows) for key in ("original bytes", "held bytes"))
    return Summary(rows, trained, sum(p.numel() for p in model.parameters()), original, held)


def _remarks(layer: AdaptedLinear, adapter: str) -> str:
    rate = layer.dropouts.get(adapter, 0.0)
    return (f", dropout {rate:g}" if rate else "") + ("" if adapter in layer.active else " (inactive)")


def _row(name: str, layer: AdaptedLinear, siblings: list[str]) -> dict[str, Any]:
    order = (*layer.active, *(a for a in layer.adapters if a not in layer.active))
    shown = [f"{a}: {layer._leaves(a).adapter}{_remarks(layer, a)}" for a in order]
    state = "merged" if layer.merged else "disabled" if layer.disabled else "active"
    pending = layer.siblings.nbytes(layer) if layer.siblings is not None else 0
    return {
        "layer": name,
        "n": layer.out_features,
        "k": layer.in_features,
        "adapters": shown,
        "trained": sum(p.numel() for p in layer.adapters.parameters()),
        "frozen": sum(b.numel() for b in layer.adapters.buffers()),
        "state": state,
        "original bytes": layer.originals.nbytes if "originals" in layer._modules else 0,
        "held bytes": layer._held.nbytes([*layer.parameters(), *layer.buffers()]) + pending,
        "siblings": siblings,
    }
