"""Constant tensors from SymPy expressions of their indices."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import sympy
import torch

from adaptc.codegen.source import Tabulated
from adaptc.ir.prims import INDEX

_NUMPY = [
    {
        "equal": lambda i, j: (np.asarray(i) == j) * 1,
        "Heaviside": lambda v, h=0.5: np.where(np.asarray(v) > 0, 1, np.where(np.asarray(v) < 0, 0, float(h))),
        "Mod": np.mod,
        "Max": lambda *v: functools.reduce(np.maximum, v),
        "Min": lambda *v: functools.reduce(np.minimum, v),
    },
    "numpy",
]


@functools.lru_cache(maxsize=4096)
def tabulate(spec: Tabulated, device: torch.device) -> torch.Tensor:
    """The constant on a device. Never written to: it is shared."""
    dtype = getattr(torch, spec.dtype)
    if isinstance(spec.value, tuple):
        return torch.tensor(spec.value, dtype=dtype, device=device).reshape(spec.shape)
    return torch.from_numpy(entries(spec.value, spec.shape)).to(dtype=dtype, device=device)


def entries(value: sympy.Expr, shape: Any) -> Any:
    """The entries of a constant as a numpy array; whole numbers stay exact."""
    grids = np.meshgrid(*(np.arange(d) for d in shape), indexing="ij", sparse=True)
    value = value.replace(sympy.KroneckerDelta, sympy.Function("equal"))  # lambdify prints an `if` for it
    result = sympy.lambdify(INDEX[: len(shape)], value, _NUMPY)(*grids)
    return np.array(np.broadcast_to(np.asarray(result), shape))
