"""Every error adaptc raises. A message says what failed, both offending values, where, and what to do next."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_TORCH = Path(getattr(find_spec("torch"), "origin", None) or "/torch/__init__.py").parent
_OURS = (str(_PACKAGE) + "/", str((_PACKAGE / "ir").resolve()) + "/", str(_TORCH) + "/")
_EQUATIONS = str(_PACKAGE / "methods") + "/"


def user_location() -> str:
    """`file:line` of the innermost frame that is not the compiler's own: the equation's line."""
    frame = sys._getframe(1)
    while frame is not None:
        if not is_ours(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "<unknown>"


def is_ours(filename: str) -> bool:
    """Is this a file of the compiler, or of torch, which calls it? The catalogue's equations are users' code."""
    name = str(Path(filename).resolve())
    return name.startswith(_OURS) and not name.startswith(_EQUATIONS)


class AdaptcError(Exception):
    """Base of every error of adaptc."""


class EquationError(AdaptcError):
    """An equation cannot be accepted; the message ends with the equation's file and line."""

    def __init__(self, message: str, where: str | None = None) -> None:
        self.where = where or user_location()
        super().__init__(f"{message} [{self.where}]")


class ShapeError(EquationError, ValueError):
    """Two sizes that must agree do not."""


class DtypeError(AdaptcError, TypeError):
    """A tensor has a dtype that cannot be used here."""


class SymbolicSizeError(EquationError, TypeError):
    """A symbolic size was asked for a number, a truth value or an order."""


class LeafError(EquationError, ValueError):
    """A leaf is declared twice, never used, or badly named."""


class HyperparameterError(EquationError, TypeError):
    """An unknown, missing or ill-typed hyper-parameter; the place is the method's."""


class UnsupportedError(AdaptcError, RuntimeError):
    """The request is understood but cannot be carried out."""


class PlanError(AdaptcError):
    """No plan meets the request."""


class InjectError(AdaptcError, ValueError):
    """The model cannot take the adapter; it was left as it was."""


class MergeError(AdaptcError, ValueError):
    """The adapter cannot be merged or unmerged; every weight was left as it was."""


class LoadError(AdaptcError, ValueError):
    """A saved adapter does not fit; the model was left as it was."""


class LawError(AdaptcError):
    """`verify` found a law of the contract that does not hold."""

    def __init__(self, law: str, detail: str) -> None:
        self.law, self.detail = law, detail
        super().__init__(f"law '{law}' failed: {detail}")


class InternalError(AdaptcError):
    """A broken invariant of the compiler itself."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}\nThis is a bug in adaptc: please report it with the equation.")
