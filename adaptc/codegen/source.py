"""What a code generator gives: text, the function's name, its arguments, and the tables it reads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

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
    strided: Any = None  # what `steps` in the text computes
    together: tuple[Any, ...] = ()  # what each of `together` in the text computes
    left: tuple[str, ...] = ()  # steps that no kernel can do, and why
    kernels: tuple[tuple[str, Any], ...] = ()  # tile programs in the text, which is then a whole file, by name

    @property
    def digest(self) -> str:
        """Of the text: equal for equal programs, in every process."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


_ASSIGNED = re.compile(r"(\w+) = ([^#]*)")
WORD = re.compile(r"\w+")


def live(lines: Sequence[str], values: Sequence[str]) -> list[str]:
    """The lines that the values need: what a sum or product took into itself is not computed alone."""
    needed = {word for v in values for word in WORD.findall(v)}
    kept = []
    for line in reversed(lines):
        code = line.partition("  #")[0]
        assigned = _ASSIGNED.fullmatch(code)
        target = assigned.group(1) if assigned else WORD.findall(code)[0]
        if target in needed:
            needed.update(WORD.findall(code))
            kept.append(line)
    return kept[::-1]


def released(lines: Sequence[str], values: Sequence[str], large: Container[str]) -> list[str]:
    """The same lines, and after the last use of what is large that it is let go: its memory, still in the caches and
    known to the system, is what the next line writes to."""
    needed = {word for v in values for word in WORD.findall(v)}
    found: list[str] = []
    for line in reversed(lines):
        words = dict.fromkeys(WORD.findall(line.partition("  #")[0]))
        ends = [w for w in words if w in large and w not in needed]
        if ends and found:
            found.append(f"del {', '.join(ends)}")
        needed.update(words)
        found.append(line)
    return found[::-1]
