"""adaptc: a compiler for adapters. Write the adapted weight of a linear layer; the rest is derived.

`ac.<operator>` is any operator that is registered, from this package or outside it.
"""

from __future__ import annotations

from typing import Any

from adaptc.explain import Report, explain
from adaptc.initial import bernoulli, kaiming_uniform, normal, randperm, uniform
from adaptc.ir.algebra import (
    clamp,
    einsum,
    hstack,
    linear,
    mean,
    norm,
    reshape,
    softmax,
    take,
    tile,
    topk,
    vstack,
)
from adaptc.ir.algebra import maximum_along as max  # noqa: A004 - torch's name
from adaptc.ir.algebra import total as sum  # noqa: A004 - torch's name
from adaptc.ir.operator import AbstractOperator
from adaptc.ir.sympy_bridge import from_sympy
from adaptc.language import (
    abs,  # noqa: A004
    cos,
    detach,
    divide,
    dropout,
    exp,
    factor_pair,
    frozen,
    gelu,
    given,
    initial,
    log,
    lu,
    maximum,
    minimum,
    noise,
    nonzero,
    param,
    penalty,
    pinv,
    qr,
    relu,
    round,  # noqa: A004
    sigmoid,
    silu,
    sin,
    sqrt,
    svd,
    tanh,
    tril,
    triu,
)
from adaptc.method import Adapter, Method, adapter
from adaptc.nn.calibrate import calibrate
from adaptc.nn.drop_in import Linear
from adaptc.nn.files import load, save
from adaptc.nn.inject import adapter_parameters, inject
from adaptc.nn.linear import AdaptedLinear
from adaptc.nn.merging import merge, unload, unmerge
from adaptc.nn.siblings import fuse_siblings
from adaptc.nn.state import disabled, giving, penalties, refresh, reset, set_active
from adaptc.nn.summary import Summary, summary
from adaptc.verify import Verdict, verify

__all__ = [
    "AdaptedLinear",
    "Adapter",
    "Linear",
    "Method",
    "Report",
    "Summary",
    "Verdict",
    "abs",
    "adapter",
    "adapter_parameters",
    "bernoulli",
    "calibrate",
    "clamp",
    "cos",
    "detach",
    "disabled",
    "divide",
    "dropout",
    "einsum",
    "exp",
    "explain",
    "factor_pair",
    "from_sympy",
    "frozen",
    "fuse_siblings",
    "gelu",
    "given",
    "giving",
    "hstack",
    "initial",
    "inject",
    "kaiming_uniform",
    "linear",
    "load",
    "log",
    "lu",
    "max",
    "maximum",
    "mean",
    "merge",
    "minimum",
    "noise",
    "nonzero",
    "norm",
    "normal",
    "param",
    "penalties",
    "penalty",
    "pinv",
    "qr",
    "randperm",
    "refresh",
    "relu",
    "reset",
    "reshape",
    "round",
    "save",
    "set_active",
    "sigmoid",
    "silu",
    "sin",
    "softmax",
    "sqrt",
    "sum",
    "summary",
    "svd",
    "take",
    "tanh",
    "tile",
    "topk",
    "tril",
    "triu",
    "uniform",
    "unload",
    "unmerge",
    "verify",
    "vstack",
]

__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> Any:
    """`ac.kron`, `ac.butterfly`, ...: every registered operator by its name."""
    operator = AbstractOperator.registry.get(name)
    if operator is None:
        raise AttributeError(f"adaptc has no '{name}'; operators: {', '.join(sorted(AbstractOperator.registry))}")
    return operator.of
