"""A method and an operator that the package has never seen, in a file of their own, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from adaptc.ir.operator import AbstractOperator
from adaptc.methods import catalogue

ROOT = Path(__file__).parents[1]
FILE = ROOT / "tests" / "outside" / "shear.py"


def python(*args, folder):
    """Run in `folder`, with nothing but the package on the path."""
    return subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ADAPTC_VERIFY": "1"},
        check=False,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder that a process has trained into."""
    folder = tmp_path_factory.mktemp("outside")
    done = python(FILE, folder, "train", folder=folder)
    assert done.stdout == "done\n", done.stderr
    return folder


def test_it_trains_merges_and_saves(trained):
    assert {p.name for p in trained.iterdir()} >= {"adapter.json", "adapter.safetensors"}


def test_it_loads_in_another_process(trained):
    done = python(FILE, trained, "load", folder=trained)
    assert done.stdout == "done\n", done.stderr


def test_it_keeps_the_whole_contract(trained):
    done = python(FILE, trained, "verify", folder=trained)
    assert done.stdout.endswith("done\n"), done.stderr


def test_without_its_file_loading_says_what_to_import(trained):
    script = "import adaptc as ac, torch; ac.load(torch.nn.Sequential(torch.nn.Linear(6, 9)), '.')"
    done = python("-c", script, folder=trained)
    assert done.returncode == 1
    assert "LoadError: adapter 'default' uses the method 'sheared' of the module '__main__'" in done.stderr


def test_it_is_known_nowhere_else():
    assert "shear" not in AbstractOperator.registry
    assert "sheared" not in catalogue()
    for path in (*ROOT.glob("adaptc/**/*.py"), *ROOT.glob("ir/**/*.py")):
        assert "shear" not in path.read_text(), path
