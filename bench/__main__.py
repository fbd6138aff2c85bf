"""`python -m bench NAME`: one command a module of this folder that has a `main`."""

from __future__ import annotations

import importlib

import click

NAMES = ("cpu", "gpu", "minilm", "models", "native", "overhead", "planner", "planning")


class Benchmarks(click.Group):
    """A module is imported when its command is asked for: each has dependencies of its own."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(NAMES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in NAMES:
            return None
        command: click.Command = importlib.import_module(f"bench.{name}").main
        return command


@click.group(cls=Benchmarks)
def main() -> None:
    """Measurements, written to bench/results."""


if __name__ == "__main__":
    main(prog_name="python -m bench")
