"""Tables as plain text."""

from __future__ import annotations

from typing import Any

from rich.console import Console


def rendered(table: Any, width: int = 118) -> str:
    """What rich would print, without colours."""
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
