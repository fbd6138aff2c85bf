"""Adapters as files, as state dicts, pickled, copied and moved."""

import copy
import json
import pickle
import sys

import pytest
import torch
from files_small import DESCRIPTION, TENSORS, bits, plain_model, rewrite_description, same, trained_model
from methods_small import METHODS, Dense, K, close, move
from safetensors.torch import load_file

import adaptc as ac
from adaptc.errors import LoadError, MergeError
from adaptc.methods import hra, lora, pissa, shira, vera

every_method = pytest.mark.parametrize("adapter", METHODS.values(), ids=METHODS)


# --------------------------------------------------------------------------- round trips


@every_method
def test_into_a_plain_model(adapter, tmp_path):
    model, x = trained_model(adapter), torch.randn(5, K)
    ac.save(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [DESCRIPTION, TENSORS]
    other = ac.load(plain_model(), tmp_path)
    assert same(bits(model), bits(other))
    assert torch.equal(other(x), model(x))
    other(x).sum().backward()
    assert all(p.grad is not None for p in ac.adapter_parameters(other))


@every_method
def test_into_a_model_that_has_the_adapter_already(adapter, tmp_path):
    model, x = trained_model(adapter), torch.randn(5, K)
    ac.save(model, tmp_path)
    other = trained_model(adapter)
    other(x)
    ac.load(other, tmp_path)
    assert same(bits(model), bits(other))
    assert torch.equal(other(x), model(x))


def test_an_optimizer_goes_on_training_what_was_loaded_over(tmp_path):
    ac.save(trained_model(lora(r=2)), tmp_path)
    model = trained_model(lora(r=2))
    before = [id(p) for p in ac.adapter_parameters(model)]
    ac.load(model, tmp_path)
    assert [id(p) for p in ac.adapter_parameters(model)] == before


@every_method
@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles(adapter, how):
    model, x = trained_model(adapter), torch.randn(5, K)
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
    model, x = trained_model(adapter), torch.randn(5, K)
    other = ac.inject(plain_model(), adapter, "all-linear")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    own = {k: v for k, v in model.state_dict().items() if ".adapters." not in k}
    fresh = plain_model()
    fresh.load_state_dict(own)
    assert list(own) == list(fresh.state_dict())
    if any(layer._leaves("default").derived for layer in other if isinstance(layer, ac.AdaptedLinear)):
        with pytest.raises(RuntimeError, match="was trained on the old weight"):
            other.load_state_dict(plain_model().state_dict())
        return
    assert not other.load_state_dict(plain_model().state_dict()).missing_keys
    assert torch.equal(other[0].weight, plain_model()[0].weight)


def test_a_state_dict_that_lacks_a_leaf_is_refused():
    model = trained_model(lora(r=2))
    part = {k: v for k, v in model.state_dict().items() if not k.endswith(".A")}
    with pytest.raises(RuntimeError, match=r"Missing key.*adapters\.default\.A"):
        model.load_state_dict(part)


@every_method
def test_to_float64_and_back(adapter):
    model, x = trained_model(adapter), torch.randn(5, K)
    want = model(x)
    model.to(torch.float64)
    wide = model(x.double())
    assert wide.dtype == torch.float64
    inside = Dense.of(model[0])(x.double()).tanh()
    close(wide, Dense.of(model[2])(inside))
    model.to(torch.float32)
    assert torch.equal(model(x), want)


def test_several_adapters_with_their_order(tmp_path):
    model, x = trained_model(lora(r=2)), torch.randn(5, K)
    ac.inject(model, hra(r=2), ["0"], name="second")
    move(model)
    ac.set_active(model, ["second", "default"])
    ac.save(model, tmp_path)
    other = ac.load(plain_model(), tmp_path)
    assert other[0].active == ("second", "default")
    assert torch.equal(other(x), model(x))
    ac.set_active(model, [])
    ac.save(model, tmp_path)
    other = ac.load(plain_model(), tmp_path)
    assert other[0].active == ()
    ac.set_active(model, ["default", "second"])
    ac.set_active(other, ["default", "second"])
    assert torch.equal(other(x), model(x))


def test_a_16_bit_base_keeps_its_masters(tmp_path):
    model, x = trained_model(lora(r=2), torch.bfloat16), torch.randn(5, K).bfloat16()
    ac.save(model, tmp_path)
    other = ac.load(plain_model(torch.bfloat16), tmp_path)
    assert all(p.dtype == torch.float32 for p in ac.adapter_parameters(other))
    assert torch.equal(other(x), model(x))


def test_shared_leaves_are_stored_once_and_shared_again(tmp_path):
    model = trained_model(vera(r=3))
    ac.save(model, tmp_path)
    stored = load_file(tmp_path / TENSORS)
    assert sorted(k for k in stored if k.startswith("shared.")) == ["shared.default.A", "shared.default.B"]
    other = ac.load(plain_model(), tmp_path)
    assert other[0].leaves()["A"] is other[2].leaves()["A"]
    assert len(stored) == 2 + 4


MOVES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "dtype": lambda m: m.double(),
}


@pytest.mark.parametrize("move_to", MOVES)
def test_shared_leaves_stay_one_tensor(move_to):
    model = MOVES[move_to](trained_model(vera(r=3)))
    for leaf in "AB":
        first, second = (model[i].leaves()[leaf] for i in (0, 2))
        assert first.data_ptr() == second.data_ptr()


def test_seeded_leaves_are_drawn_again_and_not_stored(tmp_path):
    model = trained_model(shira(r=2, seed=11))
    ac.save(model, tmp_path)
    assert not [k for k in load_file(tmp_path / TENSORS) if k.endswith(".at")]
    assert not [k for k in model.state_dict() if k.endswith(".at")]
    torch.manual_seed(123)
    other = ac.load(plain_model(), tmp_path)
    for i in (0, 2):
        assert torch.equal(other[i].leaves()["at"], model[i].leaves()["at"])


def test_values_computed_at_attach_are_not_computed_again(tmp_path, monkeypatch):
    model, x = trained_model(pissa(r=3)), torch.randn(5, K)
    ac.save(model, tmp_path)

    def refuse(*_, **__):
        raise AssertionError("an SVD")

    monkeypatch.setattr(torch.linalg, "svd", refuse)
    assert torch.equal(ac.load(plain_model(), tmp_path)(x), model(x))
    with pytest.raises(AssertionError, match="an SVD"):
        trained_model(pissa(r=3))


def test_saving_replaces_an_older_file(tmp_path):
    folder = tmp_path / "a" / "b"
    ac.save(trained_model(hra(r=2)), folder)
    model = trained_model(lora(r=2))
    ac.save(model, folder)
    assert same(bits(ac.load(plain_model(), folder)), bits(model))


def test_nothing_to_save(tmp_path):
    with pytest.raises(LoadError, match="no adapter"):
        ac.save(plain_model(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    model = trained_model(lora(r=2))
    before = bits(model)
    with pytest.raises(OSError, match="file"):
        ac.save(model, tmp_path / "file" / "below")
    assert same(before, bits(model))


def test_a_save_that_fails_leaves_the_old_files_whole(tmp_path, monkeypatch):
    model = trained_model(lora(r=2))
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
    model, x = trained_model(lora(r=2)), torch.randn(5, K)
    want = model(x)
    ac.merge(model)
    ac.save(model, tmp_path)
    assert torch.equal(ac.load(plain_model(), tmp_path)(x), want)
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
    ac.save(trained_model(declare(2.0)()), tmp_path)
    declare(3.0)
    model = plain_model()
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


def test_loading_imports_nothing(tmp_path):
    ac.save(trained_model(lora(r=2)), tmp_path)
    (tmp_path / "adapter_trap.py").write_text("raise SystemExit('imported')")

    def change(description):
        description["adapters"]["default"] |= {"module": "adapter_trap", "method": "trap"}

    rewrite_description(tmp_path, change)
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(LoadError, match="'trap' of the module 'adapter_trap'.*import adapter_trap"):
            ac.load(plain_model(), tmp_path)
    finally:
        sys.path.remove(str(tmp_path))
    assert "adapter_trap" not in sys.modules
