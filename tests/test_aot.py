"""Generated kernels compile for GPUs that are not there, and their source is the same in every process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import aot

AOT = Path(aot.__file__)
MOST = 200  # compilations: every kind but plain sums and elementwise kernels for sm_90, and some of the rest


def outside(*arguments, **variables):
    """`aot.py` in a process of its own, which compiles."""
    environment = {**os.environ, **variables, "PYTHONPATH": str(AOT.parents[1])}
    del environment["TRITON_INTERPRET"]
    run = [sys.executable, str(AOT), *arguments]
    return subprocess.run(run, capture_output=True, text=True, env=environment, check=False)


def test_every_distinct_kernel_compiles_without_spills():
    done = outside("--json", "--most", str(MOST))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout)
    print(found)
    assert found["compiled"] == min(MOST, found["of"])
    assert all(found["kinds"].get(kind) for kind in aot.KINDS)


def test_an_equation_drawn_at_random_compiles():
    done = outside("--json", "--drawn", "5", "--target", "sm_90")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads(done.stdout)["compiled"] > 0


def test_sources_do_not_depend_on_the_process():
    some = [word for name in ("lora", "hra", "fourierft") for word in ("--method", name)]
    both = [outside("--digest", *some, PYTHONHASHSEED=str(seed)) for seed in (1, 2)]
    assert both[0].returncode == 0, both[0].stderr
    assert both[0].stdout == both[1].stdout
