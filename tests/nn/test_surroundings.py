"""What surrounds a layer: other adapters, hooks, autocast, default dtypes, shared biases, state dicts."""

import copy

import pytest
import torch
from torch import nn

import adaptc as ac
from adaptc.case import move
from adaptc.errors import EquationError, InjectError, LeafError, LoadError, MergeError, PlanError
from adaptc.methods import hra, ia3, lora, parallel_adapter, vera


def model_of():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))


def test_a_load_that_does_not_compose_changes_nothing(tmp_path):
    ac.save(ac.inject(model_of(), lora(r=2), ["0", "2"]), tmp_path)
    model = ac.inject(model_of(), parallel_adapter(), ["2"], name="p")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(LoadError, match="do not go together"):
        ac.load(model, tmp_path)
    assert [type(m) for m in model] == [nn.Linear, nn.ReLU, ac.AdaptedLinear]
    assert model[2].active == ("p",)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_load_leaves_other_adapters_active(tmp_path):
    ac.save(ac.inject(model_of(), lora(r=2), ["0", "2"], name="b"), tmp_path)
    model = ac.load(ac.inject(model_of(), hra(r=2), ["2"], name="p"), tmp_path)
    assert model[0].active == ("b",)
    assert model[2].active == ("p", "b")


def test_inactive_adapters_are_loaded_as_such(tmp_path):
    model = ac.inject(model_of(), lora(r=2), ["0"], name="b")
    ac.set_active(model, [])
    ac.save(ac.inject(model, parallel_adapter(), ["0"], name="a"), tmp_path)
    loaded = ac.load(model_of(), tmp_path)
    assert loaded[0].active == ("a",)
    assert set(loaded[0].adapters) == {"a", "b"}


@pytest.mark.parametrize(("first", "second"), [(lora(r=2), lora(r=4)), (vera(), vera())], ids=["hyper", "shared"])
def test_one_name_is_one_adapter(first, second):
    model = ac.inject(model_of(), first, ["0"])
    with pytest.raises(InjectError, match="another name"):
        ac.inject(model, second, ["2"])
    assert isinstance(model[2], nn.Linear)


def test_a_function_cannot_be_drawn_again():
    @ac.adapter
    def unstored(W):
        return W + ac.param("d", (), 0.0) * ac.frozen("A", W.shape, lambda generator: None, seed=0, store=False)

    @ac.adapter
    def behind(W):
        A = ac.frozen("A", W.shape, lambda generator: None, seed=0)
        return W + ac.param("d", (), 0.0) * (A + ac.frozen("B", W.shape, ac.normal(1.0), seed=0, store=False))

    for method in (unstored, behind):
        with pytest.raises(LeafError, match=r"test_surroundings.py:\d+"):
            method().trace(4, 3)


def test_seeded_draws_do_not_depend_on_the_default_dtype():
    want = ac.AdaptedLinear(nn.Linear(8, 6), vera(r=4)).leaves()["A"]
    torch.set_default_dtype(torch.float64)
    try:
        found = ac.AdaptedLinear(nn.Linear(8, 6, dtype=torch.float32), vera(r=4)).leaves()["A"]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, want)


def test_autocast_does_not_round_what_is_merged():
    layer = ac.AdaptedLinear(nn.Linear(64, 64), hra(r=2))
    want = layer.adapted_weight()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.adapted_weight(), want)
        assert layer(torch.randn(2, 64)).dtype == torch.bfloat16
        wide = ac.AdaptedLinear(nn.Linear(8, 8).double(), lora(r=2))
        assert wide(torch.randn(2, 8).double()).dtype == torch.float64


def test_hooks_of_the_base_are_called_once():
    model, calls = nn.Sequential(nn.Linear(8, 8)), []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    ac.inject(model, lora(r=2), ["0"])
    model(torch.ones(1, 8))
    with ac.disabled(model):
        model(torch.ones(1, 8))
    ac.merge(model)
    model(torch.ones(1, 8))
    ac.unload(model)(torch.ones(1, 8))
    assert len(calls) == 4


def test_a_linear_with_a_forward_of_its_own_is_refused():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 10 * super().forward(x)

    with pytest.raises(InjectError, match="Scaled with a forward of its own"):
        ac.inject(nn.Sequential(Scaled(8, 8)), lora(r=2), ["0"])


def test_a_merged_layer_takes_no_state_dict():
    model = ac.inject(model_of(), lora(r=2), ["0"])
    ac.merge(model)
    with pytest.raises(MergeError, match="unmerge"):
        model.load_state_dict(model.state_dict())


def test_a_shared_bias_that_changes_is_a_tie():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].bias = model[0].bias
    ac.inject(model, ia3(), ["0", "1"])
    with torch.no_grad():
        model[0].leaves()["l"].fill_(2.0)
    x = torch.randn(3, 8)
    want = model(x)
    with pytest.raises(MergeError, match=r"'0.bias' and '1.bias'"):
        ac.merge(model)
    ac.merge(model, untie=True)
    assert torch.allclose(model(x), want, atol=1e-6)


def test_unload_of_a_layer_is_its_base():
    base = nn.Linear(8, 8)
    assert ac.unload(ac.AdaptedLinear(base, lora(r=2))) is base


def test_explain_and_verify_use_the_sizes_given():
    @ac.adapter
    def picky(W):
        if W.shape[1] % 96:
            raise ValueError("k must divide by 96")
        return W @ ac.block_diag(ac.param("R", (W.shape[1] // 96, 96, 96), "identity"))

    assert "n = 96, k = 96" in ac.explain(picky(), 96, 96, 4).facts["formula"]
    with pytest.raises(EquationError, match=r"ValueError: k must divide by 96 .*test_surroundings.py:\d+"):
        ac.explain(picky(), 64, 64)
    with pytest.raises(PlanError, match="both n and k"):
        ac.verify(lora(), n=17)
    assert ac.explain(lora(), 16, 16, 0).facts["kept"]["bytes"] == 0
    with pytest.raises(PlanError, match="float8"):
        ac.explain(lora(), 16, 16, dtype="float8")


def test_an_encoder_layer_of_torch_calls_its_adapted_parts_in_eval():
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    ac.inject(encoder, lora(r=2), "all-linear")
    move(encoder, 0)
    encoder.eval()
    x = torch.randn(3, 5, 16)
    with torch.no_grad():
        y = encoder(x)
    assert torch.allclose(y, encoder(x.requires_grad_()), atol=1e-5)  # with a gradient torch calls them
    ac.merge(encoder)
    with torch.no_grad():
        assert torch.allclose(ac.unload(encoder)(x), y, atol=1e-5)
    assert not any(m._forward_pre_hooks for m in encoder.modules())


def test_a_base_weight_under_a_parametrization():
    layer = ac.AdaptedLinear(nn.Linear(4, 3).requires_grad_(False), lora(r=2))
    move(layer, 0)
    x, delta = torch.randn(5, 4), layer.delta_weight()
    nn.utils.parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.data.mul_(2)
    assert torch.allclose(layer(x), nn.functional.linear(x, layer.weight + delta, layer.bias), atol=1e-6)
