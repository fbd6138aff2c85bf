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
    for name in ("planner", "native", "minilm"):
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


def test_methods_are_measured_beside_their_peers(bench, tmp_path):
    words = [*(f"--row={r}" for r in ("lora", "boft_m2", "c3a")), "--size=9x32x64", "--size=9x32x64:bfloat16"]
    result = CliRunner().invoke(bench, ["cpu", *words, "--rounds", "2", "--no-decode"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "cpu.json").read_text())
    assert not document["red"]
    assert [r["row"] for r in document["rows"]] == ["lora", "boft_m2", "c3a"] * 2
    for r in document["rows"]:
        assert min(r["frozen us"], r["adaptc"], r["peft"], r["eager"]) > 0
        assert r["trained"]["adaptc"] == r["trained"]["peft"]
        assert "lycoris" in r or "lycoris" in r.get("missing", {}) or r["row"] != "lora"
    assert (tmp_path / "cpu.png").stat().st_size > 1000
    assert "| lora |" in (tmp_path / "cpu.md").read_text()


def test_numbers_that_do_not_agree_get_no_time(bench, tmp_path, monkeypatch):
    from adaptc.nn.linear import AdaptedLinear

    forward = AdaptedLinear.forward
    monkeypatch.setattr(AdaptedLinear, "forward", lambda self, x, **given: forward(self, x, **given) * 1.01)
    words = ["--row=lora", "--size=9x32x64", "--rounds", "2", "--no-decode"]
    result = CliRunner().invoke(bench, ["cpu", *words])
    assert result.exit_code == 1
    document = json.loads((tmp_path / "cpu.json").read_text())
    assert not document["rows"]
    assert "y is off by" in document["red"][0]["error"]


def test_every_row_has_a_method_and_a_peer(bench):
    import peft

    from adaptc.methods import catalogue
    from bench.cpu_rows import ROWS

    for row in ROWS.values():
        assert row.method in catalogue()
        assert row.adapter(768, 768).trace(768, 768).leaves
        assert hasattr(peft, f"{row.config}Config")
