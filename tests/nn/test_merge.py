"""Folding adapters into the weight and back."""

import copy

import pytest
import torch
from methods_small import METHODS, OUTPUT_FORMS, WEIGHT_FORMS, Dense, K, N, close, move
from torch import nn

import adaptc as ac
from adaptc.errors import AdaptcError, MergeError
from adaptc.methods import hra, ia3, lora
from adaptc.nn.linear import AdaptedLinear

every_weight_form = pytest.mark.parametrize("adapter", WEIGHT_FORMS.values(), ids=WEIGHT_FORMS)


def model_of(adapter, *, bias=True, dtype=torch.float64):
    """Two adapted layers, trained."""
    layers = nn.Linear(K, N, bias=bias, dtype=dtype), nn.Linear(N, K, bias=bias, dtype=dtype)
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1])
    ac.inject(model, adapter, "all-linear")
    move(model)
    return model


def state(model):
    """Every entry of the state dict, copied."""
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a, b):
    """Are two states equal bit for bit?"""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@every_weight_form
@pytest.mark.parametrize("bias", [True, False])
def test_merge_keeps_the_output_and_unmerge_restores_every_bit(adapter, bias):
    model, x = model_of(adapter, bias=bias), torch.randn(5, K, dtype=torch.float64)
    want, before = model(x), state(model)
    weights = [Dense.of(layer).weights() for layer in (model[0], model[2])]
    ac.merge(model)
    close(model(x), want)
    for layer, (weight, shift) in zip((model[0], model[2]), weights, strict=True):
        close(layer.weight, weight, "W'")
        close(torch.zeros_like(shift) if layer.bias is None else layer.bias, shift, "bias'")
    ac.unmerge(model)
    assert same(before, state(model))
    assert torch.equal(model(x), want)


@every_weight_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_in_low_precision_the_weight_is_rounded_once_and_restored_exactly(adapter, dtype):
    model = model_of(adapter, dtype=dtype)
    before = state(model)
    wanted = [layer.adapted_weight() for layer in (model[0], model[2])]
    assert all(w.dtype == torch.float32 for w in wanted)
    ac.merge(model)
    for layer, weight in zip((model[0], model[2]), wanted, strict=True):
        assert torch.equal(layer.weight, weight.to(dtype))
    ac.unmerge(model)
    assert same(before, state(model))


@every_weight_form
def test_the_adapted_weight_is_a_value_of_its_own(adapter):
    layer = model_of(adapter)[0]
    dense = Dense.of(layer)
    weight, bias = dense.weights()
    close(layer.adapted_weight(), weight)
    close(layer.adapted_bias(), bias)
    close(layer.delta_weight(), weight - layer.weight, terms=weight.norm().item())
    assert not layer.adapted_weight().requires_grad
    layer.adapted_weight().zero_()
    layer.adapted_bias().zero_()
    close(layer.adapted_weight(), weight)
    close(layer.bias, dense.bias())
    layer.merge()
    close(layer.adapted_weight(), weight)
    close(layer.adapted_bias(), bias)
    close(layer.delta_weight(), weight - dense.tensors["weight"], terms=weight.norm().item())


@pytest.mark.parametrize("adapter", OUTPUT_FORMS.values(), ids=OUTPUT_FORMS)
def test_an_output_form_cannot_be_merged(adapter):
    model, x = model_of(adapter), torch.randn(5, K, dtype=torch.float64)
    want, before = model(x), state(model)
    for call in (lambda: ac.merge(model), model[0].merge, model[0].adapted_weight, model[0].delta_weight):
        with pytest.raises(MergeError, match=f"{adapter.name} adapts the output"):
            call()
    assert same(before, state(model))
    assert torch.equal(model(x), want)


# --------------------------------------------------------------------------- biases


@ac.adapter
def shifted(W, bias):
    """Adds to the bias."""
    return W, bias + ac.param("b", (W.shape[0],), "zeros")


def test_a_method_that_needs_a_bias_gives_the_layer_one():
    model = model_of(shifted(), bias=False)
    x, before = torch.randn(5, K, dtype=torch.float64), state(model)
    want = model(x)
    ac.merge(model)
    assert not model[0].bias.requires_grad
    assert torch.equal(model[0].bias, model[0].leaves()["b"])
    close(model(x), want)
    assert "0.bias" in model.state_dict()
    ac.unmerge(model)
    assert model[0].bias is None
    assert same(before, state(model))
    ac.merge(model)
    plain = ac.unload(model)
    close(plain(x), want)
    assert [type(m) for m in plain] == [nn.Linear, nn.Tanh, nn.Linear]


def test_a_bias_is_not_added_where_the_equation_leaves_it_zero():
    model = model_of(ia3(), bias=False)
    ac.merge(model)
    assert model[0].bias is None
    assert model[0].adapted_bias() is None


def test_a_base_whose_bias_appears_after_attach_is_still_the_base():
    layer = ac.AdaptedLinear(nn.Linear(4, 3, bias=False), shifted())
    with torch.no_grad():
        layer.leaves()["b"].fill_(2.0)
    layer.merge()
    with ac.disabled(nn.Sequential(layer)):
        assert torch.equal(layer(torch.zeros(4)), torch.zeros(3))
    assert torch.equal(layer(torch.zeros(4)), torch.full((3,), 2.0))


# --------------------------------------------------------------------------- failures change nothing


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_before_anything_is_written(bad):
    model, x = model_of(lora(r=2)), torch.randn(5, K, dtype=torch.float64)
    model[2].leaves()["B"].data[1, 0] = bad
    before = state(model)
    with pytest.raises(MergeError, match="not finite") as caught:
        ac.merge(model)
    assert any("'2'" in note for note in caught.value.__notes__)
    after = state(model)
    assert all(a.equal(b) for name, a in before.items() for b in [after[name]] if "2.adapters" not in name)
    assert not model[0].merged
    assert not model[2].merged
    assert torch.isfinite(model[0](x)).all()


def test_an_overflow_of_the_base_dtype_is_refused():
    layer = ac.AdaptedLinear(nn.Linear(4, 4, dtype=torch.float16), lora(r=2))
    with torch.no_grad():
        layer.leaves()["B"].fill_(1e6)
    before = layer.weight.clone()
    with pytest.raises(MergeError, match="not finite"):
        layer.merge()
    assert torch.equal(layer.weight, before)


def tied(adapter):
    """Two modules that share one weight, one of them adapted."""
    model = nn.ModuleDict({"first": nn.Linear(6, 6, bias=False), "second": nn.Linear(6, 6, bias=False)})
    model["second"].weight = model["first"].weight
    ac.inject(model, adapter, ["first"])
    move(model)
    return model


def test_a_weight_that_another_module_shares_is_refused_with_both_names():
    model = tied(lora(r=2))
    before = state(model)
    with pytest.raises(MergeError, match=r"'first.weight' and 'second.weight'.*untie=True"):
        ac.merge(model)
    assert same(before, state(model))
    assert model["first"].weight is model["second"].weight


def test_untie_gives_the_layer_a_weight_of_its_own():
    model, x = tied(lora(r=2)), torch.randn(4, 6)
    first, second, shared = model["first"](x), model["second"](x), model["second"].weight
    ac.merge(model, untie=True)
    assert torch.allclose(model["first"](x), first, atol=1e-6)
    assert torch.equal(model["second"](x), second)
    assert model["second"].weight is shared
    ac.unmerge(model)
    assert torch.equal(model["first"](x), first)
    assert torch.equal(model["second"](x), second)


def test_a_tied_embedding_is_left_alone():
    model = nn.ModuleDict({"embed": nn.Embedding(9, 6), "head": nn.Linear(6, 9, bias=False)})
    model["head"].weight = model["embed"].weight
    ac.inject(model, lora(r=2), ["head"])
    move(model)
    with pytest.raises(MergeError, match=r"'head.weight' and 'embed.weight'"):
        ac.merge(model)
    before = model["embed"].weight.clone()
    ac.merge(model, untie=True)
    assert torch.equal(model["embed"].weight, before)
    assert not torch.equal(model["head"].weight, before)


def test_a_base_that_is_also_at_a_path_that_was_not_matched_is_not_written_in_silence():
    base, x = nn.Linear(6, 6), torch.randn(4, 6)
    model = nn.ModuleDict({"a": base, "b": base})
    ac.inject(model, lora(r=2), ["a"])
    move(model)
    a, b = model["a"](x), model["b"](x)
    ac.merge(model, untie=True)
    assert torch.allclose(model["a"](x), a, atol=1e-6)
    assert torch.allclose(model["b"](x), b, atol=1e-6)


def test_a_parameter_list_that_holds_the_weight_is_a_tie_too():
    model = nn.ModuleDict({"lin": nn.Linear(6, 6)})
    model["kept"] = nn.ParameterList([model["lin"].weight])
    ac.inject(model, lora(r=2), ["lin"])
    with pytest.raises(MergeError, match=r"'lin.weight' and 'kept.0'"):
        ac.merge(model)


@pytest.mark.parametrize("call", [ac.merge, ac.unmerge])
def test_a_model_with_nothing_to_do(call):
    with pytest.raises(MergeError, match="no (un)?merged adapter"):
        call(nn.Sequential(nn.Linear(3, 3)))


def test_merging_twice_and_unmerging_twice():
    layer = model_of(lora(r=2))[0]
    with pytest.raises(MergeError, match="not merged"):
        layer.unmerge()
    layer.merge()
    with pytest.raises(MergeError, match="merged already"):
        layer.merge()


# --------------------------------------------------------------------------- while merged


def test_disabled_while_merged_gives_the_original_bits():
    model, x = model_of(lora(r=2)), torch.randn(5, K, dtype=torch.float64)
    with ac.disabled(model):
        plain = model(x)
    ac.merge(model)
    merged = model(x)
    with ac.disabled(model):
        assert torch.equal(model(x), plain)
    assert torch.equal(model(x), merged)


def test_a_merge_that_keeps_no_original():
    model, x = model_of(hra(r=2)), torch.randn(5, K, dtype=torch.float64)
    want = model(x)
    for layer in (model[0], model[2]):
        layer.merge(reversible=False)
    close(model(x), want)
    merged = state(model)
    for call in (lambda: ac.unmerge(model), lambda: ac.disabled(model).__enter__(), model[0].adapted_weight):
        with pytest.raises(MergeError, match="not kept"):
            call()
    assert same(merged, state(model))
    close(ac.unload(model)(x), want)


def test_the_state_dict_of_a_merged_layer_is_that_of_a_plain_one_beside_the_leaves():
    model, x = model_of(lora(r=2)), torch.randn(5, K, dtype=torch.float64)
    keys = list(model.state_dict())
    ac.merge(model)
    assert list(model.state_dict()) == keys
    plain = nn.Sequential(nn.Linear(K, N), nn.Tanh(), nn.Linear(N, K)).double()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "adapters" not in k})
    assert torch.equal(plain(x), model(x))


@every_weight_form
def test_unload_gives_the_plain_layers_back(adapter):
    bases = nn.Linear(K, N), nn.Linear(N, K)
    model, x = nn.Sequential(*bases), torch.randn(5, K)
    want = model(x)
    ac.inject(model, adapter, "all-linear")
    move(model)
    assert ac.unload(model) is model
    assert tuple(model) == bases
    assert torch.equal(model(x), want)


def test_unload_after_a_merge_keeps_the_folded_weights():
    model, x = model_of(lora(r=2)), torch.randn(5, K, dtype=torch.float64)
    want = model(x)
    ac.merge(model)
    plain = ac.unload(model)
    close(plain(x), want)
    assert not any(isinstance(m, AdaptedLinear) for m in plain.modules())
    assert list(plain.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_merged_model_can_be_copied_moved_and_unmerged():
    model, x = model_of(lora(r=2)), torch.randn(5, K, dtype=torch.float64)
    want, before = model(x), state(model)
    ac.merge(model)
    other = copy.deepcopy(model).float().double()
    ac.unmerge(other)
    assert torch.allclose(other(x), want, atol=1e-6)
    other = copy.deepcopy(model)
    ac.unmerge(other)
    assert same(before, state(other))
    assert all(layer.merged for layer in (model[0], model[2]))


def test_the_active_adapters_of_a_merged_layer_cannot_be_changed():
    model = model_of(lora(r=2))
    ac.merge(model)
    with pytest.raises(AdaptcError, match="unmerge"):
        ac.set_active(model, [])


def test_only_the_active_adapters_are_merged():
    model, x = model_of(lora(r=2)), torch.randn(5, K, dtype=torch.float64)
    alone = model(x)
    ac.inject(model, hra(r=2), "all-linear", name="second")
    move(model)
    ac.set_active(model, "default")
    want = model(x)
    assert not torch.equal(alone, want)
    ac.merge(model)
    close(model(x), want)


def test_a_merge_reaches_the_callers_reference_to_the_weight():
    base = nn.Linear(4, 4)
    weight = base.weight
    layer = ac.AdaptedLinear(base, lora(r=2))
    move(nn.Sequential(layer))
    layer.merge()
    assert layer.weight is weight is base.weight


def test_every_method_is_in_one_of_the_two_groups():
    assert METHODS.keys() == WEIGHT_FORMS.keys() | OUTPUT_FORMS.keys()
