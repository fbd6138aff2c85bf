"""Structured matrices: an open set. One operator is one file with one class, algebra only.

A class declares its fields, its definition in primitives (`as_matrix`), an independent dense definition that
does not use the IR (`definition`), how to draw an instance of a given shape (`sample`), and, where it pays,
how to multiply activations without forming the matrix (`apply`). Defining the class registers it, inside
this package or outside it; every law of the test-suite and of `adaptc verify` then runs on it.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable
from random import Random
from typing import Any, ClassVar

from adaptc.errors import ShapeError
from adaptc.ir.build import contract
from adaptc.ir.dims import Shape, show
from adaptc.ir.expr import Expr, Kind

Make = Callable[..., Expr]
"""make(*shape): a random real expression of that shape."""


class AbstractOperator(Expr):
    """A structured matrix (..., p, q): acts on the last two axes, leading axes are batch."""

    registry: ClassVar[dict[str, type[AbstractOperator]]] = {}
    name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__dict__.get("name") or re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        known = AbstractOperator.registry.get(cls.name)
        if known is not None and known.__module__ != cls.__module__:
            raise ShapeError(
                f"an operator named '{cls.name}' exists already, in {known.__module__}: choose another name"
            )
        AbstractOperator.registry[cls.name] = cls

    def infer(self) -> tuple[Shape, Kind]:
        """Shape and kind; the default is the dense matrix's. Overridden to raise in the user's terms."""
        matrix = self.as_matrix()
        return matrix.dims, matrix.kind

    @abstractmethod
    def as_matrix(self) -> Expr:
        """The dense matrix, in primitives."""
        raise NotImplementedError

    def apply(self, x: Expr) -> Expr:
        """x @ self.T for x (m, q), without forming the matrix where the structure allows it."""
        return contract("mk,nk->mn", x, self.as_matrix())

    @classmethod
    def of(cls, *args: Any, **kwargs: Any) -> Expr:
        """What `ac.<name>(...)` calls: user input to fields. The default takes them as they are."""
        return cls(*args, **kwargs)

    @staticmethod
    def definition(xp: Any, *fields: Any) -> Any:
        """The dense float64 matrix from dense fields, by einsum and indexing of the array namespace xp alone.

        An operator without one is checked against `as_matrix`.
        """
        raise NotImplementedError

    @classmethod
    def sample(cls, rows: int, cols: int, make: Make, rng: Random) -> Expr | None:
        """An instance of shape (rows, cols) with parts from `make`, or None where there is none."""
        return None

    @classmethod
    def defines(cls) -> bool:
        """Does this operator have a `definition` of its own?"""
        return cls.definition is not AbstractOperator.definition

    @classmethod
    def applies(cls) -> bool:
        """Does this operator have an `apply` of its own?"""
        return cls.apply is not AbstractOperator.apply


def square(A: Expr, what: str) -> None:
    """Raise unless the last two axes are equal."""
    if A.ndim < 2 or A.dims[-1] != A.dims[-2]:
        raise ShapeError(f"{what} needs a square matrix, got {show(A.dims)}")


def divisors(n: int) -> list[int]:
    """All divisors of n, ascending."""
    return [d for d in range(1, n + 1) if n % d == 0]
