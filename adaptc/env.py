"""The only reader of the environment. Four switches; each is read once, when first asked for."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """What the environment says.

    debug: ADAPTC_DEBUG, 0 silent, 1 timings, 2 IR and rules, 3 plan, 4 generated source.
    backend: ADAPTC_BACKEND, "aten" (default) or "reference".
    verify: ADAPTC_VERIFY, check expressions between stages (on in the tests).
    strict: ADAPTC_STRICT, a fallback is an error.
    """

    debug: int
    backend: str
    verify: bool
    strict: bool


@functools.lru_cache(maxsize=1)
def options() -> Options:
    """The switches, read once per process."""
    read = os.environ.get
    return Options(
        debug=int(read("ADAPTC_DEBUG", "0")),
        backend=read("ADAPTC_BACKEND", "aten"),
        verify=read("ADAPTC_VERIFY", "0") == "1",
        strict=read("ADAPTC_STRICT", "0") == "1",
    )
