"""What the planner knows of a device: three rates. Predictions only rank plans; they promise no time."""

from __future__ import annotations

from dataclasses import dataclass

from adaptc.errors import PlanError


@dataclass(frozen=True)
class Device:
    """flops: sustained products per second. bandwidth: bytes per second. overhead: seconds per operation."""

    name: str
    flops: float
    bandwidth: float
    overhead: float

    def seconds(self, flops: float, moved: float) -> float:
        """A step takes the longer of its arithmetic and its traffic, plus a constant."""
        return max(flops / self.flops, moved / self.bandwidth) + self.overhead


DEVICES = {
    d.name: d
    for d in (
        Device("cpu", flops=1.0e11, bandwidth=2.0e10, overhead=5e-6),
        Device("cpu-few", flops=1.0e10, bandwidth=4.0e10, overhead=5e-8),
        Device("h200", flops=6.0e14, bandwidth=3.5e12, overhead=5e-6),
        Device("a100", flops=2.2e14, bandwidth=1.4e12, overhead=5e-6),
    )
}
"""Orders of magnitude from data sheets, bfloat16 products on the GPUs. `cpu` is one core; `cpu-few` the same
on a few tokens, with all operations in one call and all tensors in its cache."""


def device(name: str) -> Device:
    """The device of that name. Raises PlanError naming those known."""
    if name not in DEVICES:
        raise PlanError(f"unknown device '{name}': one of {', '.join(DEVICES)}")
    return DEVICES[name]
