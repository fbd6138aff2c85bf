"""`nn.Linear` with an adapter."""

from __future__ import annotations

from typing import Any

from torch import nn

from adaptc.method import Adapter, Method
from adaptc.nn.linear import AdaptedLinear
from adaptc.runtime.attach import Wholes


class Linear(AdaptedLinear, nn.Linear):  # type: ignore[misc, override]
    """y = x W'^T + b' for x (..., in_features): an nn.Linear whose weight is adapted.

    `weight` (out_features, in_features) and `bias` are where an nn.Linear has them, drawn as it draws them, and do not
    want gradients; the adapter's leaves are at `adapters.default.<leaf>`. A plain linear's state dict loads under
    `strict=True`. Raises: the equation's own errors where it does not take these sizes.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        adapter: Adapter | Method,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        base = nn.Linear(in_features, out_features, bias, device, dtype).requires_grad_(False)
        AdaptedLinear.__init__(self, base, adapter)

    def reset_parameters(self) -> None:
        """Draw the weight and bias again as an nn.Linear does, and the leaves after them."""
        self.__dict__["base"].reset_parameters()
        for name in self.adapters:
            self._leaves(name).renew(self.renewed(name, Wholes(), everything=True))
        self.active = self._active
