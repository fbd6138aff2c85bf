"""What a code generator gives: text, the function's name, its arguments, and the tables it reads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import sympy

from adaptc.ir.dims import Shape


@dataclass(frozen=True)
class Tabulated:
    """A constant tensor: `value` (of the indices i0, i1, ..., or written out) over `shape`, in `dtype`."""

    value: sympy.Expr | tuple[float, ...]
    shape: Shape
    dtype: str


@dataclass(frozen=True)
class Source:
    """A generated function. `tables` are passed as its first argument, in order."""

    name: str
    text: str
    arguments: tuple[str, ...]
    tables: tuple[Tabulated, ...]

    @property
    def digest(self) -> str:
        """Of the text: equal for equal programs, in every process."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]
