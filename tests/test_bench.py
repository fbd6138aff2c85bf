"""The benchmarks that measure plans run, at tiny sizes, and write what their tables are made of."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """The command group; results go elsewhere."""
    monkeypatch.syspath_prepend(ROOT)
    from bench import measuring
    from bench.__main__ import main

    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    return main


def test_every_module_is_a_command(bench):
    modules = {p.stem for p in (ROOT / "bench").glob("*.py")} - {"__init__", "__main__", "measuring", "cpu_rows"}
    assert set(bench.list_commands(None)) == modules
    for name in ("planner", "native"):
        assert CliRunner().invoke(bench, [name, "--help"]).exit_code == 0


@pytest.mark.parametrize("size", ["8x12", "400x330"], ids=["few in one call", "none are few"])
def test_the_planner_is_measured(size, bench, tmp_path):
    words = ["planner", "--method", "loha", "--size", size, "--seconds", "0", "--most", "17"]
    result = CliRunner().invoke(bench, words, catch_exceptions=False)
    assert result.exit_code == 0
    document = json.loads((tmp_path / "planner_cpu.json").read_text())
    rows = document["rows"]
    assert {"cpu", "torch", "commit"} <= set(document["machine"])
    assert {r["mode"] for r in rows} == {"train", "eval"}
    for r in rows:
        assert min(r["chosen_us"], r["best_us"], r["ratio"], *r["predicted_us"]) > 0
        assert r["candidates"] >= r["timed"] >= 1
        assert r["m"] <= 17
