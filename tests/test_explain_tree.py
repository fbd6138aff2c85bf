"""The plan as a graph and a tree, predicted seconds, and reports side by side."""

import itertools
import json
import re

import pytest
from click.testing import CliRunner

import adaptc as ac
from adaptc.cli import main
from adaptc.console import rendered
from adaptc.explain import compare
from adaptc.explain.tree import plan_tree
from adaptc.methods import boft, catalogue, ia3, lora
from adaptc.plan.device import DEVICES
from adaptc.plan.plan import NOMINAL

STEP = re.compile(r"── #(\d+) ")
MANY = 40


@ac.adapter
def long_chain(W):
    """Many functions one after the other: a deep graph."""
    n, k = W.shape
    for j in range(MANY):
        W = ac.tanh(ac.param(f"U{j}", (n, k), "ones") * W)
    return W


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def drawn(report):
    """The numbers at the head of the lines of a tree."""
    return [int(n) for n in STEP.findall(report.tree())]


@pytest.mark.parametrize("name", ["lora", "boft", "dora", "hra", "quanta", "shira", "parallel_adapter", "beft"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_every_step_is_drawn_once(name, mode):
    report = ac.explain(catalogue()[name], 96, 64, 32, mode=mode)
    assert sorted(drawn(report)) == [s["number"] for s in report.facts["steps"]]


def test_a_line_says_primitive_shape_time_what_it_reads_and_value():
    report = ac.explain(lora(), 1024, 768, 4096, mode="eval")
    first = report.facts["steps"][0]
    assert first["reads"] == ["A", "B"]
    line = next(line for line in report.tree().split("\n") if "── #1 " in line)
    assert "#1 Contract (1024, 768) " in line
    assert "us of A, B: einsum('ab,ca->cb', A, B)" in line


def test_a_step_reads_steps_before_it_and_leaves():
    facts = ac.explain(boft(), 1024, 768, 512).facts
    ways = {s["number"]: s["way"] for s in facts["steps"]}
    crossing = set()
    for s in facts["steps"]:
        numbers = [r for r in s["reads"] if isinstance(r, int)]
        assert all(r < s["number"] for r in numbers)
        crossing |= {r for r in numbers if ways[r] != s["way"]}
    assert all(ways[r] == "forward" for r in crossing)
    kept = [t for t in facts["kept"]["tensors"] if t["tensor"] != "x"]
    assert len(crossing) == len(kept) > 0  # what passes from forward to backward is what is kept


def test_a_tree_of_hundreds_of_steps_in_lines_of_the_width():
    report = ac.explain(long_chain(), 64, 32, 16)
    steps = [s["number"] for s in report.facts["steps"]]
    assert len(steps) > 5 * MANY
    assert sorted(drawn(report)) == steps
    text = report.tree(width=100)
    assert max(map(len, text.split("\n"))) <= 100


def test_a_chain_of_a_thousand_steps_and_a_wide_one():
    """Neither depth nor the number of what is read makes lines too long or recursion too deep."""
    count = 1000
    row = {"way": "forward", "step": "Add", "value": "a", "shape": ["4"], "seconds": 1e-6}
    chain = [{**row, "number": n, "reads": [n - 1] if n > 1 else ["x"]} for n in range(1, count + 1)]
    wide = [*chain[:-1], {**row, "number": count, "reads": list(range(1, count))}]
    for steps in (chain, wide):
        facts = {
            "adapter": "f()", "formula": "y' = ...", "steps": steps, "seconds": {"rows": 1, "forward": 1e-3},
            "results": [{"way": "forward", "name": "y", "reads": [count]}],
        }  # fmt: skip
        text = rendered(plan_tree(facts))
        assert sorted(map(int, STEP.findall(text))) == list(range(1, count + 1))
        assert max(map(len, text.split("\n"))) <= 118


def test_the_tree_of_a_symbolic_report():
    report = ac.explain(lora())
    assert sorted(drawn(report)) == [s["number"] for s in report.facts["steps"]]
    assert f"predicted at {NOMINAL} tokens" in report.tree()


@pytest.mark.parametrize("m", [None, 512, NOMINAL])
def test_predicted_seconds_are_those_of_the_steps(m):
    facts = ac.explain(boft(), 1024, 768, m).facts
    for way in ("forward", "backward"):
        total = sum(s["seconds"] for s in facts["steps"] if s["way"] == way)
        assert 0 < total <= facts["seconds"][way] * (1 + 1e-9)
    assert facts["seconds"]["rows"] == (m or NOMINAL)
    mine = next(c for c in facts["candidates"] if c["chosen"])
    assert mine["forward seconds"] + mine["backward seconds"] <= mine["predicted seconds"] * (1 + 1e-9)
    if facts["seconds"]["rows"] == facts["ranked at"]:
        assert mine["forward seconds"] == pytest.approx(facts["seconds"]["forward"])
        assert mine["backward seconds"] == pytest.approx(facts["seconds"]["backward"])


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ["hra", "randlora", "loha", "fourierft"])
def test_a_report_says_where_in_the_number_of_tokens_the_plan_changes(name, mode):
    ranges = ac.explain(catalogue()[name], 768, 768, 1024, mode=mode).facts["by tokens"]
    assert ranges[0]["from"] == 1
    assert ranges[-1]["to"] == 65536
    assert [a["to"] + 1 for a in ranges[:-1]] == [b["from"] for b in ranges[1:]]
    assert len(ranges) > 1 or (name, mode) == ("randlora", "eval")  # whose weight is held for any number of tokens
    for one in ranges:
        plans = [ac.explain(catalogue()[name], 768, 768, m, mode=mode).facts for m in (one["from"], one["to"])]
        assert [s["value"] for s in plans[0]["steps"]] == [s["value"] for s in plans[1]["steps"]]
    ends = [ac.explain(catalogue()[name], 768, 768, one["to"], mode=mode).facts["steps"] for one in ranges]
    assert all([s["value"] for s in a] != [s["value"] for s in b] for a, b in itertools.pairwise(ends))


def test_more_tokens_take_longer_and_none_nearly_nothing():
    few, many, none = (ac.explain(lora(), 64, 64, m).facts["seconds"] for m in (8, 4096, 0))
    assert many["forward"] > few["forward"] > none["forward"] >= 0


def test_a_report_is_of_the_device_asked_for():
    facts = {name: ac.explain(boft(b=32), 2048, 2048, 4096, device=name).facts for name in DEVICES}
    seconds = [facts[name]["seconds"]["forward"] for name in ("h200", "a100", "cpu")]
    ranked = [
        next(c["predicted seconds"] for c in facts[n]["candidates"] if c["chosen"]) for n in ("h200", "a100", "cpu")
    ]
    assert seconds == sorted(seconds)
    assert ranked == sorted(ranked)
    assert ranked[0] < 0.1 * ranked[2]
    assert all(s["by"] == "aten" for name in ("h200", "a100") for s in facts[name]["steps"])


def test_compare_gives_plain_values():
    reports = [ac.explain(m, 256, 128, 64) for m in (lora(r=4), boft(b=4), ia3())]
    rows = compare(reports)
    assert json.loads(json.dumps(rows)) == rows
    assert [r["adapter"].partition("(")[0] for r in rows] == ["lora", "boft", "ia3"]
    for row, report in zip(rows, reports, strict=True):
        facts = report.facts
        assert row["parameters"] == facts["parameters"]
        assert row["steps"] == len(facts["steps"])
        assert row["bytes kept"] == facts["kept"]["bytes"]
        assert (row["forward seconds"], row["backward seconds"]) == (
            facts["seconds"]["forward"],
            facts["seconds"]["backward"],
        )
    assert rows[0]["forms"] == {"W + 4 (B @ A)": rows[0]["forms"]["W + 4 (B @ A)"]}
    assert compare([]) == []


def test_compare_on_the_command_line():
    sizes = ("--n", 96, "--k", 64, "--m", 32)
    result = run("explain", "lora", *sizes, "-s", "r=2", "--compare", "lora r=4", "--compare", "hra", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output)
    assert [r["adapter"] for r in rows] == ["lora(r=2, alpha=16.0)", "lora(r=4, alpha=16.0)", rows[2]["adapter"]]
    assert rows[1]["parameters"] == 2 * rows[0]["parameters"] == 4 * (96 + 64)
    text = run("explain", "lora", *sizes, "--compare", "hra").output
    for part in ("lora(r=8", "hra(r=", "parameters", "forward over base", "kept over x", "backward seconds", "forms"):
        assert part in text


def test_a_comparison_with_symbols():
    rows = json.loads(run("explain", "lora", "--compare", "ia3", "--json").output)
    assert rows[0]["parameters"] == "8*(k + n)"
    assert all(isinstance(r["forward seconds"], float) and r["steps"] for r in rows)


def test_tree_on_the_command_line():
    text = run("explain", "lora", "--n", 96, "--k", 64, "--m", 32, "--tree").output
    for part in ("forward, ", "backward, ", "gradient of x", "gradient of A", "#3 Contract (m, 96)"):
        assert part in text
    facts = json.loads(run("explain", "lora", "--n", 96, "--k", 64, "--m", 32, "--tree", "--json").output)
    assert all(s["reads"] for s in facts["steps"])
    assert [r["name"] for r in facts["results"]][:2] == ["y", "gradient of x"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tree", "--compare", "hra"), "--tree or --compare"),
        (("--compare", "nothing"), "no method 'nothing'"),
        (("--compare", "hra q=1"), "no hyper-parameter 'q'"),
        (("--compare", ""), "no method ''"),
        (("--compare", "hra 'q=1"), "hra 'q=1"),
    ],
)
def test_wrong_usage(arguments, said):
    result = run("explain", "lora", *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.output
