"""The command line: what it prints, its JSON, its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from adaptc.cli import main
from adaptc.methods import catalogue

WRONG = """
import adaptc as ac
from adaptc.ir.build import contract, reshape
from adaptc.ir.expr import Expr
from adaptc.ir.operator import AbstractOperator

class MyKron(AbstractOperator):
    A: Expr
    B: Expr
    def as_matrix(self):
        (p, q), (s, t) = self.A.dims, self.B.dims
        return reshape(contract("pq,st->psqt", self.A, self.B), (p * s, q * t))
    def apply(self, x):
        (p, q), (s, t) = self.A.dims, self.B.dims
        return reshape(contract("mqt,qp,st->mps", reshape(x, (x.dims[0], q, t)), self.A, self.B), (x.dims[0], p * s))

@ac.adapter
def mine(W):
    n, k = W.shape
    A = ac.param("A", (2, 2), "zeros")
    return W + MyKron(A, ac.param("B", (ac.divide(n, 2), ac.divide(k, 2)), "kaiming_uniform"))

@ac.adapter
def fine(W, *, r=2):
    n, k = W.shape
    return W + ac.param("B", (n, r), "zeros") @ ac.param("A", (r, k), "kaiming_uniform")
"""


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_list_names_every_method_with_equation_and_source():
    result = run("list", "--json")
    assert result.exit_code == 0
    rows = json.loads(result.output)
    assert [r["name"] for r in rows] == list(catalogue())
    elsewhere = [r["name"] for r in rows if "arXiv:" not in r["source"]]
    assert elsewhere == ["adamss", "deft", "frod", "hira", "lora_bd"]  # their sources say where the formula is from
    assert all(r["source"] and "'" in r["equation"] and r["parameters"] for r in rows)
    assert all(name in run("list").output for name in catalogue())


def test_the_document_of_the_methods_holds_every_row_of_the_table():
    rows = run("list", "--markdown").output.strip().split("\n")[2:]
    document = Path(__file__).parents[1].joinpath("docs", "methods.md").read_text(encoding="utf-8").split("\n")
    assert len(rows) == len(catalogue())
    assert all(sum(line.startswith(row) for line in document) == 1 for row in rows)


@pytest.mark.parametrize("name", catalogue())
@pytest.mark.parametrize("sizes", [("--n", 1024, "--k", 768, "--m", 512), ()], ids=["numbers", "symbols"])
def test_explain(name, sizes):
    result = run("explain", name, *sizes, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.output)
    assert facts["kept"]["tensors"] or name == "beft"  # a bias of its own keeps nothing
    assert facts["steps"]
    assert facts["candidates"]
    assert facts["formula"].startswith(("W' = ", "y' = "))
    if sizes:
        assert isinstance(facts["kept"]["bytes"], int)
        assert isinstance(facts["cost"]["forward"], int)


def test_explain_prints_formula_parameters_flops_bytes_and_plan():
    text = run("explain", "boft", "--n", 1024, "--k", 768, "--m", 512).output
    for part in ("butterfly", "trainable parameters: 7168", "base product", "Kept for backward", "Plan", "Candidates"):
        assert part in text
    symbolic = run("explain", "boft").output
    assert "8*k + n" in symbolic
    assert "4*m*(k + n) bytes" in symbolic


def test_explain_keeps_to_a_limit():
    sizes, x_bytes = ("--n", 512, "--k", 512, "--m", 256), 256 * 512 * 4

    def kept(*options):
        return json.loads(run("explain", "boft", *sizes, *options, "--json").output)["kept"]["bytes"]

    assert kept() > 1.5 * x_bytes
    for most in ("1.5x", int(1.5 * x_bytes)):
        assert kept("--max-saved", most) <= 1.5 * x_bytes
    for most, said in ((7, "the least that can be kept"), ("much", "got 'much'")):
        refused = run("explain", "boft", *sizes, "--max-saved", most)
        assert refused.exit_code == 1
        assert said in refused.output


def test_verify_a_file(tmp_path):
    file = tmp_path / "scratch.py"
    file.write_text(WRONG)
    good = run("verify", f"{file}:fine", "--n", 6, "--k", 4)
    assert good.exit_code == 0
    assert "every law holds at 6 x 4" in good.output
    bad = run("verify", f"{file}:mine", "--json")
    assert bad.exit_code == 1
    verdict = json.loads(bad.output)
    assert verdict["law"] == "operator my_kron"
    assert "n = 8, k = 12" in verdict["message"]
    assert "apply of my_kron(A, B)" in verdict["message"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("verify", "nothing"), "no method 'nothing'"),
        (("verify", "lora", "-s", "rank=3"), "no hyper-parameter 'rank'"),
        (("verify", "lora", "-s", "r"), "NAME=VALUE"),
        (("verify", "lora", "--n", "3"), "both --n and --k"),
        (("verify", "no_such_file.py:f"), "no such file"),
        (("explain", "lora", "--device", "toaster"), "toaster"),
        (("explain", "lora", "--n", "0"), "--n"),
    ],
)
def test_wrong_usage(arguments, said):
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_an_equation_that_refuses_the_size_is_exit_code_1():
    result = run("explain", "oft", "--n", 8, "--k", 7)
    assert result.exit_code == 1
    assert "32 does not divide 7" in result.output
    assert "orthogonal.py:" in result.output


def test_bench(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import adaptc as ac\n@ac.adapter\ndef mine(W, *, r=2):\n    n, k = W.shape\n"
        "    return W + ac.param('B', (n, r), 'zeros') @ ac.param('A', (r, k), 'kaiming_uniform')\n"
    )
    words = ("bench", f"{file}:mine", "-s", "r=3", "--n", 24, "--k", 16, "--m", 5, "--rounds", 2)
    rows = json.loads(run(*words, "--json").output)["rows"]
    assert list(rows) == ["frozen linear", "lora r=8", "mine(r=3)"]
    assert [row["trained"] for row in rows.values()] == [0, 8 * 40, 3 * 40]
    assert all(row["training us"] > 0 and row["decoding over frozen"] > 0 for row in rows.values())
    assert rows["mine(r=3)"]["kept over x"] == 1.0
    assert "over" in run(*words).output


def test_help_and_module():
    for command in ("list", "explain", "verify", "tune", "bench"):
        assert run(command, "--help").exit_code == 0
    done = subprocess.run(
        [sys.executable, "-m", "adaptc", "list", "--json"], capture_output=True, text=True, check=True
    )
    assert len(json.loads(done.stdout)) == len(catalogue())
