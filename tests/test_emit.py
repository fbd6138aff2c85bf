"""Packages of generated source: they need torch and triton alone, and their own tests hold."""

import ast
import importlib
import json
import sys

import pytest
from click.testing import CliRunner

import adaptc as ac
from adaptc.cli.main import main
from adaptc.codegen.choice import GAIN
from adaptc.emit import emit_package
from adaptc.errors import PlanError
from adaptc.methods import catalogue

ALONE = {"torch", "triton", "pytest"}


def roots(path):
    """What a file imports from outside of its package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of entries that are not stored
@pytest.mark.parametrize("name", ["lora", "dora", "hra", "boft", "fourierft"])
def test_a_package_stands_alone_and_is_right(name, tmp_path, monkeypatch):
    folder = tmp_path / f"emitted_{name}"
    found = emit_package(catalogue()[name], 32, 48, 100, "float32", "sm_90", folder)
    assert found.kernels > 0
    assert {path.name for path in folder.iterdir()} == set(found.files)
    outside = {root for path in folder.glob("*.py") for root in roots(path)}
    assert outside - set(sys.stdlib_module_names) <= ALONE
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(f"{folder.name}.test_{name}").test_y_and_gradients()


def test_its_test_can_fail(tmp_path, monkeypatch):
    folder = tmp_path / "emitted_wrong"
    emit_package(catalogue()["lora"], 32, 48, 100, "float32", "sm_90", folder)
    text = (folder / "forward.py").read_text()
    (folder / "forward.py").write_text(text.replace("tl.dot(", "1.01 * tl.dot("))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AssertionError):
        importlib.import_module(f"{folder.name}.test_lora").test_y_and_gradients()


def test_the_command_writes_once(tmp_path):
    out = tmp_path / "kernels"
    words = ["emit", "dora", "--n", "32", "--k", "48", "--out", str(out)]
    done = CliRunner().invoke(main, [*words, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["kernels"] > 0
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 1
    assert str(out) in again.output


@pytest.mark.parametrize(("dtype", "target", "said"), [("float64", "sm_90", "float32"), ("float32", "sm_70", "sm_80")])
def test_what_there_is_no_package_for_is_said(dtype, target, said, tmp_path):
    with pytest.raises(PlanError, match=said):
        emit_package(catalogue()["lora"], 32, 48, 100, dtype, target, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["lora", "dora", "hra", "fourierft"])
def test_explain_shows_both_ways_without_a_gpu(name):
    report = ac.explain(catalogue()[name], 4096, 4096, 8192, dtype="bfloat16", device="h200")
    rows = report.to_dict()["kernels"]
    assert {r["way"] for r in rows} == {"forward", "backward"}
    assert ([r for r in rows if r["kernel seconds"] is None] != []) == (name == "fourierft")
    for r in (r for r in rows if r["kernel seconds"] is not None):
        assert r["by"] == ("triton" if r["kernel seconds"] <= GAIN * r["torch seconds"] else "aten")
    assert {r["by"] for r in rows} == {"triton", "aten"}
    assert "Kernels: one generated, or torch's" in str(report)


def test_explain_shows_no_kernels_of_a_cpu():
    assert ac.explain(catalogue()["lora"], 64, 48, 32).to_dict()["kernels"] == []
    assert ac.explain(catalogue()["lora"], device="h200").to_dict()["kernels"] == []
