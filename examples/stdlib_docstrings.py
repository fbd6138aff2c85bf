"""Real labelled text that is on every machine: the docstrings of Python's standard library.

    python examples/stdlib_docstrings.py docstrings.csv

writes one row of text and label per docstring. The label is the package it was written for. The
sources are parsed, never imported, and the names of the packages are cut out of every text.
"""

import ast
import csv
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PACKAGES = (
    "asyncio email http importlib inspect logging mailbox multiprocessing tarfile unittest urllib xml"
).split()  # each has at least 88 docstrings in Python 3.10 to 3.14
FEWEST_WORDS = 4


def collect(per_package: int = 88, seed: int = 0) -> list[tuple[str, str]]:
    """(text, label) pairs: the same number of docstrings, drawn by chance, for every package."""
    labels: dict[str, set[str]] = {}
    for package in PACKAGES:
        for text in _docstrings(package):
            labels.setdefault(text, set()).add(package)
    drawn = random.Random(seed)
    pairs = []
    for package in PACKAGES:
        texts = sorted(text for text, owners in labels.items() if owners == {package})
        pairs += [(text, package) for text in drawn.sample(texts, min(per_package, len(texts)))]
    return pairs


def _docstrings(package: str) -> Iterator[str]:
    names = re.compile("|".join(PACKAGES), re.IGNORECASE)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in _sources(package):
        for node in ast.walk(ast.parse(path.read_bytes())):
            text = (isinstance(node, kinds) and ast.get_docstring(node)) or ""
            text = " ".join(names.sub(" ", text).split())
            if len(text.split()) >= FEWEST_WORDS:
                yield text


def _sources(package: str) -> list[Path]:
    library = Path(sysconfig.get_path("stdlib"))
    found = [library / f"{package}.py", *(library / package).rglob("*.py")]
    return sorted(path for path in found if path.is_file() and "test" not in path.parts)


if __name__ == "__main__":
    with open(sys.argv[1], "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *collect()])
