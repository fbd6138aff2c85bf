"""Damaged adapter files: loading raises LoadError and leaves the model and torch's generator as they were."""

import json
import shutil

import pytest
import torch
from files_small import DESCRIPTION, TENSORS, bits, plain_model, rewrite_description, same, trained_model
from methods_small import K, N
from safetensors.torch import load_file, save_file
from torch import nn

import adaptc as ac
from adaptc.errors import LoadError
from adaptc.methods import lora, vera


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder that loads."""
    folder = tmp_path_factory.mktemp("good")
    ac.save(trained_model(vera(r=3)), folder)
    ac.load(plain_model(), folder)
    return folder


def put(*path, value=None):
    """Set or remove an entry of the description."""

    def change(description):
        *front, last = path
        for key in front:
            description = description[key]
        if value is None:
            del description[last]
        else:
            description[last] = value

    return change


KEYS = ("format", "adapters", "shared", "layers", "equations")
LAYER = ("n", "k", "equations", "active")
ADAPTER = ("method", "module", "hyper")
WRONG = ([], {}, "text", 7, [1], {"a": 1}, True, 1.5)
CHANGES = {
    **{f"no {key}": put(key) for key in KEYS},
    **{f"no layer {key}": put("layers", "0", key) for key in LAYER},
    **{f"no adapter {key}": put("adapters", "default", key) for key in ADAPTER},
    **{f"{key} = {v!r}": put(key, value=v) for key in KEYS for v in WRONG},
    **{f"layer = {v!r}": put("layers", "0", value=v) for v in WRONG},
    **{f"layer {key} = {v!r}": put("layers", "0", key, value=v) for key in LAYER for v in WRONG},
    **{f"adapter = {v!r}": put("adapters", "default", value=v) for v in WRONG},
    **{f"adapter {key} = {v!r}": put("adapters", "default", key, value=v) for key in ADAPTER for v in WRONG},
    **{f"shared = {v!r}": put("shared", "default", value=v) for v in WRONG},
    **{f"shared A = {v!r}": put("shared", "default", "A", value=v) for v in WRONG},
    "no shared A": put("shared", "default", "A"),
    "no shared default": put("shared", "default"),
    "a size beyond memory": put("shared", "default", "A", value=[2**40, 2**40]),
    "a negative size": put("shared", "default", "A", value=[-3, 24]),
    "another layer": lambda d: d["layers"].update(third=d["layers"]["0"]),
    "a layer that is not linear": lambda d: d["layers"].update({"1": d["layers"]["0"]}),
    "the model itself": lambda d: d["layers"].update({"": d["layers"]["0"]}),
    "another n": put("layers", "0", "n", value=N + 1),
    "an active adapter that is not there": put("layers", "0", "active", value=["other"]),
    "an active adapter twice": put("layers", "0", "active", value=["default", "default"]),
    "an unknown hyper-parameter": put("adapters", "default", "hyper", value={"rank": 3}),
    "a hyper-parameter of the wrong type": put("adapters", "default", "hyper", value={"r": "three"}),
    "a negative hyper-parameter": put("adapters", "default", "hyper", value={"r": -3}),
    "a huge hyper-parameter": put("adapters", "default", "hyper", value={"r": 10**30}),
    "a later format": put("format", value=99),
    "an empty equation": lambda d: d["equations"].clear(),
}
HARMLESS = {
    *("equations = {}", "equations = {'a': 1}", "an empty equation"),  # texts for people to read
    "adapter module = 'text'",  # the method has moved, and no other has its name
    "layer active = []",
    "format = True",  # is 1
}


def refused(folder):
    """Loading raises LoadError and leaves both kinds of model as they were."""
    for model in (plain_model(), ac.inject(plain_model(), vera(r=3), "all-linear")):
        before, state = bits(model), torch.random.get_rng_state()
        with pytest.raises(LoadError):
            ac.load(model, folder)
        assert same(before, bits(model))
        assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("change", [name for name in CHANGES if name not in HARMLESS])
def test_a_damaged_description(good, tmp_path, change):
    folder = shutil.copytree(good, tmp_path / "damaged")
    rewrite_description(folder, CHANGES[change])
    refused(folder)


def tensors(folder, change):
    """Change the tensors in place."""
    found = load_file(folder / TENSORS)
    change(found)
    save_file(found, folder / TENSORS)


DAMAGE = {
    "missing": lambda t: t.pop("0.adapters.default.d"),
    "missing whole": lambda t: t.pop("shared.default.A"),
    "extra": lambda t: t.update(extra=torch.zeros(2)),
    "another shape": lambda t: t.update({"0.adapters.default.d": torch.zeros(4)}),
    "a transposed whole": lambda t: t.update({"shared.default.A": t["shared.default.A"].T.contiguous()}),
    "whole numbers": lambda t: t.update({"0.adapters.default.d": torch.zeros(3, dtype=torch.int64)}),
    "truth values": lambda t: t.update({"0.adapters.default.d": torch.zeros(3, dtype=torch.bool)}),
    "complex": lambda t: t.update({"0.adapters.default.d": torch.zeros(3, dtype=torch.complex64)}),
    "empty": lambda t: t.clear(),
}


@pytest.mark.parametrize("change", DAMAGE)
def test_damaged_tensors(good, tmp_path, change):
    folder = shutil.copytree(good, tmp_path / "damaged")
    tensors(folder, DAMAGE[change])
    refused(folder)


BYTES = {
    "truncated": lambda b: b[: len(b) // 2],
    "one byte short": lambda b: b[:-1],
    "nothing": lambda b: b"",
    "noise": lambda b: bytes(range(256)) * 4,
    "not unicode": lambda b: b"\xff\xfe" + b,
}


@pytest.mark.parametrize("name", [TENSORS, DESCRIPTION])
@pytest.mark.parametrize("change", BYTES)
def test_damaged_bytes(good, tmp_path, name, change):
    folder = shutil.copytree(good, tmp_path / "damaged")
    (folder / name).write_bytes(BYTES[change]((folder / name).read_bytes()))
    refused(folder)


@pytest.mark.parametrize("value", [[], [1], "text", 7, None, True, "x" * 10])
def test_a_description_that_is_no_object(good, tmp_path, value):
    folder = shutil.copytree(good, tmp_path / "damaged")
    (folder / DESCRIPTION).write_text(json.dumps(value))
    refused(folder)


@pytest.mark.parametrize("name", [TENSORS, DESCRIPTION])
def test_a_missing_file_is_named(good, tmp_path, name):
    folder = shutil.copytree(good, tmp_path / "damaged")
    (folder / name).unlink()
    with pytest.raises(LoadError, match=name.replace(".", r"\.")):
        ac.load(plain_model(), folder)
    refused(folder)
    (folder / name).mkdir()
    refused(folder)


def test_a_path_that_is_not_there(tmp_path):
    refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file")


def test_an_adapter_of_the_same_name_that_is_another(good):
    model = ac.inject(plain_model(), lora(r=2), "all-linear")
    before = bits(model)
    with pytest.raises(LoadError, match="another adapter named 'default': lora"):
        ac.load(model, good)
    assert same(before, bits(model))


def test_another_model(good):
    model = nn.Sequential(nn.Linear(K, N), nn.Tanh(), nn.Linear(N, K + 1))
    before = bits(model)
    with pytest.raises(LoadError, match=r"'2' is \(17, 24\) in the model and \(16, 24\) in the file"):
        ac.load(model, good)
    assert same(before, bits(model))
