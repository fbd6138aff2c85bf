"""The command line: `adaptc list`, `explain`, `verify`, `tune`, `demo`."""

from adaptc.cli.main import main as main
