"""What the documents show is run, in the order in which it stands, and prints what they say."""

import doctest
import linecache
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import adaptc as ac
from adaptc.ir.operator import AbstractOperator
from adaptc.method import METHODS
from adaptc.methods import catalogue

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [ROOT / "README.md", *DOCS]
BLOCK = re.compile(r"^```(python|sh|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# file: (\S+)\n")


@pytest.fixture(autouse=True)
def names_of_their_own():
    """Methods and operators that a document declares are gone after it."""
    kept = [(table, dict(table)) for table in (METHODS, AbstractOperator.registry)]
    yield
    for table, before in kept:
        table.clear()
        table.update(before)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, where `python` and `adaptc` are the tests' own."""
    here, programs = tmp_path / "here", tmp_path / "programs"
    for place in (here, programs):
        place.mkdir()
    for name, start in (("python", ""), ("adaptc", "-m adaptc")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {start} "$@"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.syspath_prepend(here)
    monkeypatch.chdir(here)
    yield here
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(here)):
            del sys.modules[name]


def run_python(path, text, match, space):
    """A block in the document's namespace; errors name the document's own lines."""
    source = "\n" * text.count("\n", 0, match.start(2)) + match[2]
    linecache.cache[str(path)] = (len(text), None, text.splitlines(True), str(path))
    exec(compile(source, str(path), "exec"), space)


def run_shell(script, fails):
    """What a block of shell commands prints. `fails`: whether its last command should."""
    done = subprocess.run(
        ["sh", "-ec", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


def same_text(shown, printed):
    """Is this what was printed? `...` stands for anything; spaces at ends of lines do not count."""
    ours, theirs = ("".join(f"{line.rstrip()}\n" for line in t.rstrip().split("\n")) for t in (shown, printed))
    return doctest.OutputChecker().check_output(ours, theirs, doctest.ELLIPSIS | doctest.DONT_ACCEPT_BLANKLINE)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_a_document_runs_and_prints_what_it_shows(path, folder, capsys):
    text, space, printed = path.read_text(), {"__name__": f"document_{path.stem}"}, None
    blocks = list(BLOCK.finditer(text))
    for match, after in zip(blocks, [*blocks[1:], None], strict=False):
        kind, body = match.groups()
        shown = after[2] if after and after[1] == "text" else ""
        if kind == "text":
            assert printed is not None, f"nothing printed this:\n{body}"
            assert same_text(body, printed), f"shown:\n{body}\nprinted:\n{printed}"
            printed = None
        elif named := FILE.match(body):
            (folder / named[1]).write_text(body)
        elif kind == "python":
            run_python(path, text, match, space)
            printed = capsys.readouterr().out
        elif path in DOCS:  # the README's are `make`, which runs these tests
            printed = run_shell(body, "Error: " in shown)


def test_the_readme_has_examples_and_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(PYTHON.findall(text)) >= 3
    assert len(text.encode()) < 6 * 1024


def test_the_readme_names_every_method_and_links_to_the_documents():
    text = (ROOT / "README.md").read_text()
    listed = text.partition("<!-- methods:begin -->")[2].partition("<!-- methods:end -->")[0]
    assert f"{len(catalogue())} methods: {', '.join(catalogue())}." in " ".join(listed.split())
    assert all(f"](docs/{p.name})" in text for p in DOCS)


def test_what_is_generated_is_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}run python docs/generate.py"


def test_every_operator_has_a_picture():
    for name, cls in AbstractOperator.registry.items():
        if cls.__module__.startswith("adaptc.ir.operators."):
            picture = ElementTree.parse(ROOT / "docs" / "pictures" / f"{name}.svg").getroot()
            assert len(picture) >= 3, name  # title, frame, entries


@pytest.mark.parametrize("name", ["language", "reference"])
def test_every_public_name_is_described(name):
    text = (ROOT / "docs" / f"{name}.md").read_text()
    ours = [n for n, cls in AbstractOperator.registry.items() if cls.__module__.startswith("adaptc.ir.operators.")]
    missing = [n for n in (*ac.__all__, *ours) if not re.search(rf"\bac\.{n}\b", text)]
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_name_of_the_package_exists(path, folder):
    text = path.read_text()
    own = {name for cls in re.findall(r"^class (\w+)\(AbstractOperator\)", text, re.MULTILINE) for name in [snake(cls)]}
    names = set(re.findall(r"\bac\.([A-Za-z_]\w*)", text)) - own
    missing = [name for name in sorted(names) if not hasattr(ac, name)]
    assert not missing


def snake(name):
    """RankOne -> rank_one."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_block_says_its_language(path):
    fences = re.findall(r"^```(\w*)", path.read_text(), re.MULTILINE)
    assert len(fences) % 2 == 0
    assert all(fences[::2])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_to_files_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target
