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
    vstack,
)
from adaptc.ir.algebra import maximum_along as max  # noqa: A004 - torch's name
from adaptc.ir.algebra import total as sum  # noqa: A004 - torch's name
from adaptc.ir.operator import AbstractOperator
from adaptc.language import (
    abs,  # noqa: A004
    cos,
    detach,
    divide,
    exp,
    factor_pair,
    frozen,
    gelu,
    initial,
    log,
    lu,
    maximum,
    minimum,
    param,
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
from adaptc.nn.files import load, save
from adaptc.nn.inject import (
    adapter_parameters,
    disabled,
    inject,
    merge,
    set_active,
    unload,
    unmerge,
)
from adaptc.nn.linear import AdaptedLinear
from adaptc.nn.summary import Summary, summary
from adaptc.verify import verify

__all__ = [
    "Summary",
    "summary",
    "AdaptedLinear",
    "Adapter",
    "Method",
    "Report",
    "abs",
    "adapter",
    "adapter_parameters",
    "bernoulli",
    "clamp",
    "cos",
    "detach",
    "disabled",
    "divide",
    "einsum",
    "exp",
    "explain",
    "factor_pair",
    "frozen",
    "gelu",
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
    "norm",
    "normal",
    "param",
    "pinv",
    "qr",
    "randperm",
    "relu",
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
    "svd",
    "take",
    "tanh",
    "tile",
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
