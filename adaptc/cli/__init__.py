"""The command line: `adaptc list`, `explain`, `verify`, `demo`."""

from adaptc.cli.main import main as main
