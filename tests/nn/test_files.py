"""Adapters as files, as state dicts, pickled, copied and moved."""

import copy
import json
import pickle
import shutil
import sys

import pytest
import torch
from methods_small import METHODS, Dense, K, N, close, move
from safetensors.torch import load_file, save_file
from torch import nn

import adaptc as ac
from adaptc.errors import LoadError, MergeError
from adaptc.methods import hra, lora, pissa, shira, vera

TENSORS, DESCRIPTION = "adapter.safetensors", "adapter.json"
every_method = pytest.mark.parametrize("adapter", METHODS.values(), ids=METHODS)


def plain(dtype=torch.float32):
    """The same weights in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(K, N), nn.Tanh(), nn.Linear(N, K)).to(dtype)


def trained(adapter, dtype=torch.float32):
    """A model with a trained adapter on both layers."""
    model = ac.inject(plain(dtype), adapter, "all-linear")
    move(model)
    return model


def bits(model):
    """Every tensor and flag of a model, and the kind of every module."""
    kinds = [(name, type(m), m.training) for name, m in model.named_modules()]
    tensors = {n: (t.clone(), t.requires_grad) for n, t in model.state_dict(keep_vars=True).items()}
    return kinds, tensors


def same(a, b):
    """Are two models equal bit for bit?"""
    return a[0] == b[0] and all(
        torch.equal(t, b[1][name][0]) and t.dtype == b[1][name][0].dtype and flag == b[1][name][1]
        for name, (t, flag) in a[1].items()
    )


# --------------------------------------------------------------------------- round trips


@every_method
def test_into_a_plain_model(adapter, tmp_path):
    model, x = trained(adapter), torch.randn(5, K)
    ac.save(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [DESCRIPTION, TENSORS]
    other = ac.load(plain(), tmp_path)
    assert same(bits(model), bits(other))
    assert torch.equal(other(x), model(x))
    other(x).sum().backward()
    assert all(p.grad is not None for p in ac.adapter_parameters(other))


@every_method
def test_into_a_model_that_has_the_adapter_already(adapter, tmp_path):
    model, x = trained(adapter), torch.randn(5, K)
    ac.save(model, tmp_path)
    other = trained(adapter)
    other(x)
    ac.load(other, tmp_path)
    assert same(bits(model), bits(other))
    assert torch.equal(other(x), model(x))


def test_an_optimizer_goes_on_training_what_was_loaded_over(tmp_path):
    ac.save(trained(lora(r=2)), tmp_path)
    model = trained(lora(r=2))
    before = [id(p) for p in ac.adapter_parameters(model)]
    ac.load(model, tmp_path)
    assert [id(p) for p in ac.adapter_parameters(model)] == before


@every_method
@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles(adapter, how):
    model, x = trained(adapter), torch.randn(5, K)
    want = model(x)
    other = how(model)
    assert same(bits(model), bits(other))
    assert torch.equal(other(x), want)
    move(other)
    assert not torch.equal(other(x), want)
    assert torch.equal(model(x), want)
    other(x).sum().backward()
    assert all(p.grad is None for p in model.parameters())


@every_method
def test_state_dict_both_ways(adapter):
    model, x = trained(adapter), torch.randn(5, K)
    other = ac.inject(plain(), adapter, "all-linear")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    own = {k: v for k, v in model.state_dict().items() if ".adapters." not in k}
    fresh = plain()
    fresh.load_state_dict(own)
    assert list(own) == list(fresh.state_dict())
    missing = other.load_state_dict(plain().state_dict(), strict=False).missing_keys
    assert missing
    assert all(".adapters.default." in key for key in missing)


@every_method
def test_to_float64_and_back(adapter):
    model, x = trained(adapter), torch.randn(5, K)
    want = model(x)
    model.to(torch.float64)
    wide = model(x.double())
    assert wide.dtype == torch.float64
    inside = Dense.of(model[0])(x.double()).tanh()
    close(wide, Dense.of(model[2])(inside))
    model.to(torch.float32)
    assert torch.equal(model(x), want)


def test_several_adapters_with_their_order(tmp_path):
    model, x = trained(lora(r=2)), torch.randn(5, K)
    ac.inject(model, hra(r=2), ["0"], name="second")
    move(model)
    ac.set_active(model, ["second", "default"])
    ac.save(model, tmp_path)
    other = ac.load(plain(), tmp_path)
    assert other[0].active == ("second", "default")
    assert torch.equal(other(x), model(x))
    ac.set_active(model, [])
    ac.save(model, tmp_path)
    other = ac.load(plain(), tmp_path)
    assert other[0].active == ()
    ac.set_active(model, ["default", "second"])
    ac.set_active(other, ["default", "second"])
    assert torch.equal(other(x), model(x))


def test_a_16_bit_base_keeps_its_masters(tmp_path):
    model, x = trained(lora(r=2), torch.bfloat16), torch.randn(5, K).bfloat16()
    ac.save(model, tmp_path)
    other = ac.load(plain(torch.bfloat16), tmp_path)
    assert all(p.dtype == torch.float32 for p in ac.adapter_parameters(other))
    assert torch.equal(other(x), model(x))


def test_shared_leaves_are_stored_once_and_shared_again(tmp_path):
    model = trained(vera(r=3))
    ac.save(model, tmp_path)
    stored = load_file(tmp_path / TENSORS)
    assert sorted(k for k in stored if k.startswith("shared.")) == ["shared.default.A", "shared.default.B"]
    other = ac.load(plain(), tmp_path)
    assert other[0].leaves()["A"] is other[2].leaves()["A"]
    assert len(stored) == 2 + 4


MOVES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "dtype": lambda m: m.double(),
}


@pytest.mark.parametrize("move_to", MOVES)
def test_shared_leaves_stay_one_tensor(move_to):
    model = MOVES[move_to](trained(vera(r=3)))
    for leaf in "AB":
        first, second = (model[i].leaves()[leaf] for i in (0, 2))
        assert first.data_ptr() == second.data_ptr()


def test_seeded_leaves_are_drawn_again_and_not_stored(tmp_path):
    model = trained(shira(r=2, seed=11))
    ac.save(model, tmp_path)
    assert not [k for k in load_file(tmp_path / TENSORS) if k.endswith(".at")]
    assert not [k for k in model.state_dict() if k.endswith(".at")]
    torch.manual_seed(123)
    other = ac.load(plain(), tmp_path)
    for i in (0, 2):
        assert torch.equal(other[i].leaves()["at"], model[i].leaves()["at"])


def test_values_computed_at_attach_are_not_computed_again(tmp_path, monkeypatch):
    model, x = trained(pissa(r=3)), torch.randn(5, K)
    ac.save(model, tmp_path)

    def refuse(*_, **__):
        raise AssertionError("an SVD")

    monkeypatch.setattr(torch.linalg, "svd", refuse)
    assert torch.equal(ac.load(plain(), tmp_path)(x), model(x))
    with pytest.raises(AssertionError, match="an SVD"):
        trained(pissa(r=3))


def test_saving_replaces_an_older_file(tmp_path):
    folder = tmp_path / "a" / "b"
    ac.save(trained(hra(r=2)), folder)
    model = trained(lora(r=2))
    ac.save(model, folder)
    assert same(bits(ac.load(plain(), folder)), bits(model))


def test_nothing_to_save(tmp_path):
    with pytest.raises(LoadError, match="no adapter"):
        ac.save(plain(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    model = trained(lora(r=2))
    before = bits(model)
    with pytest.raises(OSError, match="file"):
        ac.save(model, tmp_path / "file" / "below")
    assert same(before, bits(model))


def test_a_save_that_fails_leaves_the_old_files_whole(tmp_path, monkeypatch):
    model = trained(lora(r=2))
    ac.save(model, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    move(model)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(OSError, match="No space"):
        ac.save(model, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_an_adapter_of_a_merged_model_is_the_adapter(tmp_path):
    model, x = trained(lora(r=2)), torch.randn(5, K)
    want = model(x)
    ac.merge(model)
    ac.save(model, tmp_path)
    assert torch.equal(ac.load(plain(), tmp_path)(x), want)
    with pytest.raises(LoadError, match="merged.*unmerge"):
        ac.load(model, tmp_path)
    with pytest.raises(MergeError, match="no unmerged"):
        ac.merge(model)


# --------------------------------------------------------------------------- equations


def declare(scale):
    """A method whose equation changes from one release to the next."""

    def changing(W, *, r=2):
        n, k = W.shape
        A = ac.param("A", (r, k), "kaiming_uniform")
        return W + scale * (ac.param("B", (n, r), "zeros") @ A)

    return ac.adapter(changing)


def test_a_changed_equation_is_refused_with_both_texts(tmp_path):
    ac.save(trained(declare(2.0)()), tmp_path)
    declare(3.0)
    model = plain()
    before = bits(model)
    with pytest.raises(LoadError, match="(?s)'changing' has changed.*in the file:.*now:") as caught:
        ac.load(model, tmp_path)
    old, new = str(caught.value).split("now:")
    assert "2" in old.split("in the file:")[1]
    assert "3" in new
    assert __file__ in old
    assert same(before, bits(model))
    declare(2.0)
    ac.load(model, tmp_path)


def rewrite(folder, change):
    """Change the description in place."""
    path = folder / DESCRIPTION
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


def test_loading_imports_nothing(tmp_path):
    ac.save(trained(lora(r=2)), tmp_path)
    (tmp_path / "adapter_trap.py").write_text("raise SystemExit('imported')")

    def change(description):
        description["adapters"]["default"] |= {"module": "adapter_trap", "method": "trap"}

    rewrite(tmp_path, change)
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(LoadError, match="'trap' of the module 'adapter_trap'.*import adapter_trap"):
            ac.load(plain(), tmp_path)
    finally:
        sys.path.remove(str(tmp_path))
    assert "adapter_trap" not in sys.modules


# --------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder that loads."""
    folder = tmp_path_factory.mktemp("good")
    ac.save(trained(vera(r=3)), folder)
    ac.load(plain(), folder)
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
    for model in (plain(), ac.inject(plain(), vera(r=3), "all-linear")):
        before, state = bits(model), torch.random.get_rng_state()
        with pytest.raises(LoadError):
            ac.load(model, folder)
        assert same(before, bits(model))
        assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("change", [name for name in CHANGES if name not in HARMLESS])
def test_a_damaged_description(good, tmp_path, change):
    folder = shutil.copytree(good, tmp_path / "damaged")
    rewrite(folder, CHANGES[change])
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
        ac.load(plain(), folder)
    refused(folder)
    (folder / name).mkdir()
    refused(folder)


def test_a_path_that_is_not_there(tmp_path):
    refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file")


def test_an_adapter_of_the_same_name_that_is_another(good):
    model = ac.inject(plain(), lora(r=2), "all-linear")
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
