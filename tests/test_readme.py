"""What the documents show is run."""

import linecache
import re
from pathlib import Path

import pytest

import adaptc as ac
from adaptc.method import METHODS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def methods_of_their_own():
    """Methods that a document declares are gone after it."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_the_python_of_a_document_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = path.read_text()
    space = {"__name__": f"document_{path.stem}"}
    for match in PYTHON.finditer(text):
        lines = text.count("\n", 0, match.start(1))
        source = "\n" * lines + match[1]  # errors name the document's own lines
        linecache.cache[str(path)] = (len(text), None, text.splitlines(True), str(path))
        exec(compile(source, str(path), "exec"), space)
    capsys.readouterr()


def test_the_readme_has_examples_and_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(PYTHON.findall(text)) >= 3
    assert len(text.encode()) < 6 * 1024


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_name_of_the_package_exists(path):
    names = set(re.findall(r"\bac\.([A-Za-z_]\w*)", path.read_text()))
    missing = [name for name in sorted(names) if not hasattr(ac, name)]
    assert not missing


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
