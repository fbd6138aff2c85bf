"""Devices as the planner sees them, and their calibration: what is measured, written, read and refused. No timing."""

import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import adaptc as ac
from adaptc import env
from adaptc.cli import main
from adaptc.codegen import product as generated
from adaptc.errors import PlanError, UnsupportedError
from adaptc.methods import lora
from adaptc.plan.device import DEVICES, NARROW, PRODUCT_DTYPES, Device, device
from adaptc.runtime import machine
from adaptc.runtime.planning import planned_as
from adaptc.tune import calibrate

BUDGET = 0.02  # seconds

GOOD = {
    "format": "adaptc calibration 1",
    "devices": {
        "cpu": {
            "flops": 2e10, "bandwidth": 1e10, "overhead": 1e-6, "gemm": {"float32": 2e10, "bfloat16": 4e10},
            "skinny": [[1, 0.1], [32, 0.5]], "columns": 2.0, "elementwise": 1e9,
        }
    },
}  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of its own."""
    monkeypatch.setattr(machine.platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache"


@pytest.fixture
def switch(monkeypatch):
    """Sets ADAPTC_DEVICE for one test."""

    def turn(value):
        monkeypatch.setenv("ADAPTC_DEVICE", value)
        env.options.cache_clear()

    yield turn
    monkeypatch.undo()
    env.options.cache_clear()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A calibration of this machine in the least time."""
    return calibrate(BUDGET, tmp_path_factory.mktemp("calibration") / "mine.json")


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def with_change(path, value):
    """GOOD with one value of the CPU's changed, or left out."""
    document = json.loads(json.dumps(GOOD))
    found = document["devices"]["cpu"]
    if value is None:
        del found[path]
    else:
        found[path] = value
    return document


# ---------------------------------------------------------------------------- devices


def test_seconds_of_a_step_are_what_they_were():
    cpu = device("cpu")
    assert cpu.seconds(1e11, 0) == 1.0 + cpu.overhead
    assert cpu.seconds(0, 2e10) == 1.0 + cpu.overhead
    assert list(DEVICES) == ["cpu", "cpu-few", "h200", "a100"]


@pytest.mark.parametrize("name", DEVICES)
def test_a_large_product_costs_what_its_rate_says(name):
    d = device(name)
    side = 1 << 15
    for dtype in PRODUCT_DTYPES:
        assert d.product(side, side, side, dtype) == pytest.approx(2 * side**3 / d.rate(dtype) + d.overhead)
    assert d.product(8, 8, 8, batch=0) == d.product(0, 8, 8) == d.overhead
    dtype = next(n for n in PRODUCT_DTYPES if d.rate(n) == d.flops)
    assert d.product(side, side, side, dtype) == pytest.approx(d.seconds(2 * side**3, 0))


@pytest.mark.parametrize("name", DEVICES)
def test_more_of_anything_never_costs_less(name):
    d = device(name)
    for at in range(3):
        times = []
        for extent in (1, 2, 3, 8, 9, 31, 32, 100, 128, 129, 256, 1000):
            sizes = [512, 512, 512]
            sizes[at] = extent
            times.append(d.product(*sizes))
        assert times == sorted(times)
    assert d.product(64, 64, 64, batch=8) > d.product(64, 64, 64)


def test_the_factor_of_skinny_products():
    d = Device("toy", flops=1e9, bandwidth=1e9, overhead=1e-6, skinny=((2, 0.1), (8, 0.5), (32, 1.0)))
    assert [d.factor(e) for e in (1, 2, 4, 8, 16, 32, 64)] == pytest.approx(
        [0.1, 0.1, 0.05**0.5, 0.5, 0.5**0.5, 1.0, 1.0]
    )
    assert Device("plain", 1e9, 1e9, 1e-6).factor(1) == 1.0


def test_few_columns_cost_more_unless_turned():
    d = Device("toy", flops=1e9, bandwidth=1e15, overhead=0.0, columns=4.0)
    assert d.product(512, 8, 64, turned=False) == 4 * d.product(512, 8, 64)
    for m, n in ((512, NARROW + 1), (8, 512), (8, 8)):
        assert d.product(m, n, 64, turned=False) == d.product(m, n, 64)
    assert NARROW == generated.NARROW


def test_elementwise_passes_and_dtypes_have_rates_of_their_own():
    d = Device("toy", 1e9, 1e12, 0.0, gemm=(("bfloat16", 4e9),), elementwise=1e8)
    assert d.elementwise_pass(1e8, 1) == 1.0
    assert d.elementwise_pass(1, 1e12) == 1.0
    assert Device("plain", 1e9, 1e12, 0.0).elementwise_pass(1e9, 0) == 1.0
    assert (d.rate("bfloat16"), d.rate("float32")) == (4e9, 1e9)


# ---------------------------------------------------------------------------- measuring


def test_what_is_measured_can_be_read(measured):
    d = device(str(measured.path))
    assert d == device(f"{measured.path}#cpu")
    assert {dtype for dtype, _ in d.gemm} == set(PRODUCT_DTYPES)
    assert d.rate("float32") == d.flops > 0
    assert d.kind == "cpu"
    extents = [e for e, _ in d.skinny]
    factors = [f for _, f in d.skinny]
    assert extents == sorted(extents)
    assert factors == sorted(factors)
    assert 0 < factors[0] <= factors[-1] <= 1
    assert d.columns >= 1
    assert json.loads(measured.path.read_text()) == {k: v for k, v in measured.to_dict().items() if k != "path"} | {
        "devices": json.loads(json.dumps(measured.document["devices"]))
    }
    assert [p.name for p in measured.path.parent.iterdir()] == ["mine.json"]


def test_the_file_is_named_by_the_machine(cache, monkeypatch):
    path = machine.calibration_file()
    assert path.parent == cache / "adaptc" / "calibration"
    assert f"{torch.get_num_threads()}-threads-torch-{torch.__version__}" in path.name
    monkeypatch.setattr(machine, "cpu_model", lambda: "Some (R) CPU/..\\ @ 3 GHz")
    assert machine.calibration_file().name.startswith("some-r-cpu-..-3-ghz-")


def test_nothing_is_written_unless_asked(cache):
    found = calibrate(BUDGET, write=False)
    assert found.path is None
    assert not cache.exists()


@pytest.mark.parametrize("seconds", [0, -1, 1e9, float("nan")])
def test_a_time_that_is_none(seconds):
    with pytest.raises(UnsupportedError, match="cannot measure for"):
        calibrate(seconds)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnsupportedError, match=r"cannot write the calibration to .*mine\.json"):
        calibrate(BUDGET, tmp_path / "file" / "mine.json")


# ---------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", "import os", "\ufeff{}", "[" * 100_000, '{"format": "adaptc calibration 2"}',
        {**GOOD, "devices": []}, {**GOOD, "devices": {"cpu": 3}}, {**GOOD, "devices": {"cuda": {}}},
        with_change("flops", None), with_change("flops", -1), with_change("flops", True), with_change("flops", "1e9"),
        with_change("bandwidth", float("nan")), with_change("overhead", float("inf")), with_change("columns", 0),
        with_change("gemm", {"float32": 0}), with_change("gemm", {"int4": 1.0}), with_change("gemm", None),
        with_change("skinny", "abc"), with_change("skinny", [[1]]), with_change("skinny", [[32, 0.5], [1, 0.1]]),
        with_change("skinny", [[1, 1.5]]), with_change("skinny", [[1.5, 0.5]]), with_change("skinny", [[1, None]]),
        " " * ((1 << 20) + 1),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "foreign.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        device(str(path))
    assert str(path) in str(caught.value)
    assert "adaptc tune --calibrate" in str(caught.value)


def test_bytes_that_are_no_text_a_folder_and_nothing(tmp_path):
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00\x80")
    (tmp_path / "folder.json").mkdir()
    for name in ("bytes.json", "folder.json", "nothing.json"):
        with pytest.raises(PlanError, match=f"{name}.*adaptc tune --calibrate"):
            device(str(tmp_path / name))


def test_names_that_are_no_device(tmp_path):
    (tmp_path / "good#1.json").write_text(json.dumps(GOOD))
    assert device(str(tmp_path / "good#1.json")).flops == 2e10
    with pytest.raises(PlanError, match="describes no device 'cuda'"):
        device(f"{tmp_path / 'good#1.json'}#cuda")
    for name in ("toaster", "cpu.json#tpu", ""):
        with pytest.raises(PlanError, match="unknown device"):
            device(name)


# ---------------------------------------------------------------------------- asking for it


def test_a_calibration_is_used_only_where_it_is_asked_for(cache, switch):
    path = machine.calibration_file()
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(GOOD))
    assert (planned_as("cpu"), planned_as("cuda")) == ("cpu", "h200")
    shipped = ac.explain(lora(), 96, 64, 1024).facts["seconds"]
    asked = ac.explain(lora(), 96, 64, 1024, device="calibrated").facts["seconds"]
    assert asked != shipped
    assert asked == ac.explain(lora(), 96, 64, 1024, device=str(path)).facts["seconds"]
    switch("calibrated")
    assert planned_as("cpu") == planned_as("observed cpu") == f"{path}#cpu"
    assert planned_as("cuda") == f"{path}#cuda"
    assert ac.explain(lora(), 96, 64, 1024).facts["seconds"] == asked
    layer = ac.AdaptedLinear(nn.Linear(58, 74), lora(r=3))
    for rows in (2, 500):
        x = torch.randn(rows, 58, requires_grad=True)
        layer(x).sum().backward()
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.base.weight, layer.base.bias))


def test_the_switch_without_a_calibration_says_what_to_do(cache, switch):
    switch("calibrated")
    with pytest.raises(PlanError, match="there is no such file; measure with `adaptc tune --calibrate`"):
        ac.explain(lora(), 96, 64, 32)
    switch("measured")
    with pytest.raises(UnsupportedError, match="ADAPTC_DEVICE is 'measured': one of shipped, calibrated"):
        env.options()


# ---------------------------------------------------------------------------- the command line


def test_tune_alone_says_what_it_can_do(cache):
    result = run("tune")
    assert result.exit_code == 2
    assert "--calibrate" in result.output
    assert not cache.exists()
    assert run("tune", "--calibrate", "--seconds", 0).exit_code == 2


def test_calibrate_and_explain_on_the_command_line(cache):
    missing = run("explain", "lora", "--device", "calibrated")
    assert missing.exit_code == 1
    result = run("tune", "--calibrate", "--seconds", BUDGET)
    assert result.exit_code == 0, result.output
    for part in ("products of float32", "smallest extent 8", "copies", "overhead of a call", "written: "):
        assert part in result.output
    assert machine.calibration_file().is_file()
    found = json.loads(run("tune", "--calibrate", "--seconds", BUDGET, "--json").output)
    assert found["path"] == str(machine.calibration_file())
    assert found["machine"]["threads"] == torch.get_num_threads()
    for name in ("calibrated", machine.calibration_file()):
        result = run("explain", "lora", "--n", 96, "--k", 64, "--m", 32, "--device", name, "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.output)["seconds"]["forward"] > 0
