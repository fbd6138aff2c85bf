"""Statistics of layers that initialisers ask for, measured on data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adaptc.errors import InjectError, LeafError
from adaptc.nn.base import STATISTICS, is_transposed, sizes
from adaptc.nn.inject import ALL_LINEAR, Targets, find

KINDS = ("gradient", "second_moment")
Loss = Callable[[Any, Any], Tensor]


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    of: str,
    target_modules: Targets = ALL_LINEAR,
    loss: Loss | None = None,
) -> nn.Module:
    """Measure a statistic of every matched layer; equations ask for it with `given(name, ..., at="attach")`.

    of: "second_moment", (k, k), the mean of x x^T over all tokens, or "gradient", (n, k), the mean over batches of the
    loss's gradient for W; either may carry a tag of your own, as in "second_moment.safety". batches: each a mapping
    (`model(**batch)`), a tuple or list (`model(*batch)`), or one argument. loss: (output, batch) -> scalar; by
    default the output's `loss`, or a scalar output itself. The model runs in eval mode; sums are in float32 or wider.
    It is left as it was; what was measured is forgotten with it.
    Raises: LeafError for an unknown statistic or no batch; InjectError for no layer.
    """
    kind = of.partition(".")[0]
    if kind not in KINDS:
        raise LeafError(f"calibrate measures {' or '.join(KINDS)}, got '{of}'")
    found = find(model, target_modules, None)
    layers = {id(m): m.__dict__.get("base", m) for m in found.values()}
    if not layers:
        raise InjectError(f"no layer matches {target_modules!r}: there is nothing to measure")
    modules = {id(m): m for m in found.values()}
    measure = _gradients if kind == "gradient" else _second_moments
    with _in_eval(model):
        measured = measure(model, modules, list(batches), loss)
    for key, value in measured.items():
        STATISTICS.setdefault(layers[key], {})[of] = value
    return model


def _wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _run(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def _need_batches(count: int) -> int:
    if not count:
        raise LeafError("calibrate needs at least one batch")
    return count


@torch.no_grad()
def _second_moments(
    model: nn.Module, modules: dict[int, nn.Module], batches: list[Any], loss: Any
) -> dict[int, Tensor]:
    _need_batches(len(batches))
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}

    def watch(key: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            x = args[0] if args else named["input"]
            rows = x.reshape(-1, x.shape[-1])
            rows = rows.to(_wide(rows))
            sums[key] = sums[key] + rows.T @ rows if key in sums else rows.T @ rows
            counts[key] = counts.get(key, 0) + len(rows)

        return hook

    handles = [module.register_forward_pre_hook(watch(key), with_kwargs=True) for key, module in modules.items()]
    try:
        for batch in batches:
            _run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {key: total / max(counts[key], 1) for key, total in sums.items()}


@contextmanager
def _in_eval(model: nn.Module) -> Any:
    """No dropout, no running statistics, and every module's mode as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _wanting(weights: list[nn.Parameter]) -> Any:
    """Let these weights want gradients, and nothing else change."""
    before = [w.requires_grad for w in weights]
    try:
        for w in weights:
            w.requires_grad_(True)
        yield
    finally:
        for w, old in zip(weights, before, strict=True):
            w.requires_grad_(old)


def _gradients(model: nn.Module, modules: dict[int, nn.Module], batches: list[Any], loss: Any) -> dict[int, Tensor]:
    count = _need_batches(len(batches))
    weights = {key: module._parameters["weight"] for key, module in modules.items()}
    present: list[nn.Parameter] = [w for w in weights.values() if w is not None]
    sums = {
        key: torch.zeros(sizes(modules[key]), dtype=_wide(w), device=w.device)
        for key, w in weights.items()
        if w is not None
    }
    with _wanting(present), torch.enable_grad():
        for batch in batches:
            output = _run(model, batch)
            value = loss(output, batch) if loss else getattr(output, "loss", output)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise LeafError("the model gives no scalar loss: pass loss=(output, batch) -> scalar")
            found = torch.autograd.grad(value.reshape(()), present, allow_unused=True)
            for key, g in zip(sums, found, strict=True):
                if g is not None:
                    transposed = is_transposed(modules[key].__dict__.get("base", modules[key]))
                    sums[key] += g.t() if transposed else g
    return {key: total / count for key, total in sums.items()}
