"""The only reader of the environment. Five switches; each is read once, when first asked for."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

from adaptc.errors import UnsupportedError

TRITON = "triton"
BACKENDS = ("aten", "reference", TRITON)
SHIPPED, CALIBRATED = "shipped", "calibrated"


@dataclass(frozen=True)
class Options:
    """What the environment says.

    debug: ADAPTC_DEBUG, 0 silent, 1 timings, 2 equation and choices, 3 plan, 4 generated source.
    backend: ADAPTC_BACKEND, "aten" (default), "reference", or "triton": every step that can be is a generated kernel,
    wherever the tensors are (on a CPU with TRITON_INTERPRET=1).
    verify: ADAPTC_VERIFY, check expressions between stages (on in the tests).
    strict: ADAPTC_STRICT, a step that should be a generated kernel and cannot be is an error.
    device: ADAPTC_DEVICE, "shipped" (default) or "calibrated": whose rates the planner uses for this machine.
    """

    debug: int
    backend: str
    verify: bool
    device: str = SHIPPED
    strict: bool = False


@functools.lru_cache(maxsize=1)
def options() -> Options:
    """The switches, read once per process."""
    read = os.environ.get
    backend = read("ADAPTC_BACKEND", BACKENDS[0])
    if backend not in BACKENDS:
        raise UnsupportedError(f"ADAPTC_BACKEND is '{backend}': one of {', '.join(BACKENDS)}")
    device = read("ADAPTC_DEVICE", SHIPPED)
    if device not in (SHIPPED, CALIBRATED):
        raise UnsupportedError(f"ADAPTC_DEVICE is '{device}': one of {SHIPPED}, {CALIBRATED}")
    return Options(
        debug=int(read("ADAPTC_DEBUG", "0")),
        backend=backend,
        verify=read("ADAPTC_VERIFY", "0") == "1",
        strict=read("ADAPTC_STRICT", "0") == "1",
        device=device,
    )
