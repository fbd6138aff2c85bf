"""Adapters on whole models: what is matched, what is frozen, and that a failure changes nothing."""

import copy

import pytest
import torch
from methods_small import METHODS, WEIGHT_FORMS, Dense, close, move
from torch import nn

import adaptc as ac
from adaptc.errors import AdaptcError, InjectError, LeafError, ShapeError
from adaptc.methods import hra, lora, lora_mixture, vera
from adaptc.nn.linear import AdaptedLinear


class Block(nn.Module):
    """Two projections and an output layer."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(d, d), nn.Linear(d, 2 * d, bias=False)
        self.out = nn.Linear(2 * d, d)

    def forward(self, x):
        return self.out(self.v_proj(self.q_proj(x)).relu())


def blocks():
    """Three blocks and a convolution."""
    return nn.Sequential(Block(), Block(), Block(), nn.Conv1d(4, 4, 1))


def paths(model):
    """Where the adapters are."""
    return [name for name, m in model.named_modules() if isinstance(m, AdaptedLinear)]


def snapshot(model):
    """All that a failure must leave as it was, in a form that can be compared."""
    state = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modules = {name: id(m) for name, m in model.named_modules(remove_duplicate=False)}
    return state, flags, modules, torch.random.get_rng_state()


def unchanged(before, model):
    """Compare with a snapshot, bit for bit."""
    state, flags, modules, rng = snapshot(model)
    assert before[1:3] == (flags, modules)
    assert state.keys() == before[0].keys()
    for name, (key, value) in state.items():
        assert key == before[0][name][0]
        assert torch.equal(value, before[0][name][1]), name
    assert torch.equal(rng, before[3])


# --------------------------------------------------------------------------- matching


@pytest.mark.parametrize(
    ("targets", "exclude", "expected"),
    [
        (["q_proj"], None, ["0.q_proj", "1.q_proj", "2.q_proj"]),
        (("v_proj", "0.out"), None, ["0.v_proj", "0.out", "1.v_proj", "2.v_proj"]),
        (["1.q_proj"], None, ["1.q_proj"]),
        (r".*\.(q|v)_proj", ["0.q_proj", "v_proj"], ["1.q_proj", "2.q_proj"]),
        (r"[01]\.out", None, ["0.out", "1.out"]),
        ("all-linear", r"[12]\..*", ["0.q_proj", "0.v_proj", "0.out"]),
        ("all-linear", ["out", "q_proj"], ["0.v_proj", "1.v_proj", "2.v_proj"]),
    ],
)
def test_matching(targets, exclude, expected):
    model = ac.inject(blocks(), lora(r=2), targets, exclude_modules=exclude)
    assert paths(model) == expected


@pytest.mark.parametrize("targets", [["proj"], "q_proj", r"q_proj.*", [], ["q_proj."], ""])
def test_nothing_matched(targets):
    model = blocks()
    before = snapshot(model)
    with pytest.raises(InjectError, match="no module matches.*0.q_proj"):
        ac.inject(model, lora(r=2), targets)
    unchanged(before, model)


def test_all_linear_leaves_the_output_layer_of_a_language_model():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 9)

        def get_output_embeddings(self):
            return self.head

    assert paths(ac.inject(Language(), lora(r=2), "all-linear")) == ["body"]
    assert paths(ac.inject(Language(), lora(r=2), ["head"])) == ["head"]


def test_all_linear_again_finds_the_layers_that_have_adapters():
    model = ac.inject(blocks(), lora(r=2), "all-linear", name="first")
    ac.inject(model, hra(r=2), "all-linear", name="second")
    assert all(m.active == ("first", "second") for m in model.modules() if isinstance(m, AdaptedLinear))
    assert len(paths(model)) == 9


def test_multihead_attention():
    model = nn.TransformerEncoderLayer(8, 2, 16)
    before = snapshot(model)
    with pytest.raises(InjectError, match="MultiheadAttention.*'self_attn.out_proj'"):
        ac.inject(model, lora(r=2), ["out_proj", "linear1"])
    unchanged(before, model)
    assert paths(ac.inject(model, lora(r=2), "all-linear")) == ["linear1", "linear2"]


def test_one_layer_at_two_paths_gets_one_adapter():
    layer = nn.Linear(6, 6)
    model = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)})
    ac.inject(model, lora(r=2), ["a", "b.0"])
    assert model["a"] is model["b"][0]
    assert len(ac.adapter_parameters(model)) == 2
    assert list(model["a"].active) == ["default"]
    ac.unload(model)
    assert model["a"] is model["b"][0] is layer


# --------------------------------------------------------------------------- what is trained


def test_everything_but_the_leaves_is_frozen_and_keeps_its_name():
    model = blocks()
    plain = dict(model.named_parameters())
    ac.inject(model, lora(r=2), ["q_proj", "v_proj"])
    for name, p in model.named_parameters():
        assert p.requires_grad == ("adapters" in name)
        assert "adapters" in name or p is plain[name]
    assert [id(p) for p in ac.adapter_parameters(model)] == [id(p) for p in model.parameters() if p.requires_grad]


def test_a_second_adapter_leaves_the_first_trained():
    model = ac.inject(blocks(), lora(r=2), ["q_proj"], name="first")
    ac.inject(model, lora(r=2), ["out"], name="second")
    assert model[0].q_proj.leaves("first")["A"].requires_grad
    assert len(ac.adapter_parameters(model)) == 12


def test_training_mode_and_plain_outputs_are_kept():
    model, x = blocks()[:3].eval(), torch.randn(4, 8)
    want = model(x)
    ac.inject(model, lora(r=2), ["q_proj"])
    assert not any(m.training for m in model.modules())
    assert torch.allclose(model(x), want, atol=1e-6)


@pytest.mark.parametrize("adapter", METHODS.values(), ids=METHODS)
def test_a_training_step(adapter):
    model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16))
    ac.inject(model, adapter, "all-linear")
    plain = {name: p.clone() for name, p in model.named_parameters() if "adapters" not in name}
    optimizer = torch.optim.AdamW(ac.adapter_parameters(model), lr=1e-3)
    x = torch.randn(64, 16)
    target, losses = torch.randn(64, 16), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(model.get_parameter(name), p) for name, p in plain.items())
    moved = [p for p in ac.adapter_parameters(model) if optimizer.state[p]["exp_avg"].any()]
    assert moved


def test_shared_leaves_are_one_tensor_as_large_as_the_largest_layer():
    model = nn.Sequential(nn.Linear(8, 20), nn.Linear(20, 12), nn.Linear(12, 5))
    ac.inject(model, vera(r=3), "all-linear")
    A, B = ({id(m.leaves()[leaf]): m.leaves()[leaf] for m in model} for leaf in "AB")
    assert [tuple(t.shape) for t in (*A.values(), *B.values())] == [(3, 20), (20, 3)]
    move(model)
    for layer in model:
        x = torch.randn(4, layer.in_features)
        assert torch.allclose(layer(x).double(), Dense.of(layer)(x.double()), rtol=1e-5, atol=1e-5)


@ac.adapter
def from_W(W):
    """Starts from W itself, twice."""
    return W + ac.param("V", W.shape, W) - ac.param("U", W.shape, lambda W: W)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("adapter", [*METHODS.values(), from_W()], ids=[*METHODS, "from_W"])
def test_no_leaf_shares_its_memory_with_another_tensor(adapter, dtype):
    model = ac.inject(nn.Sequential(nn.Linear(16, 24, dtype=dtype)), adapter, ["0"])
    tensors = [model[0].weight, model[0].bias, *model[0].leaves().values()]
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)


@ac.adapter
def tied_lora(W, *, r=2):
    """Every layer trains the same B."""
    n, k = W.shape
    A = ac.param("A", (r, k), "kaiming_uniform")
    return W + ac.param("B", (n, r), "zeros", shared="B") @ A


def test_a_shared_parameter_is_trained_once_by_all_layers():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).double()
    ac.inject(model, tied_lora(), "all-linear")
    B = model[0].leaves()["B"]
    assert B is model[1].leaves()["B"]
    assert len(ac.adapter_parameters(model)) == 3
    move(model)
    x = torch.randn(5, 4).double()
    model(x).sum().backward()
    whole, B.grad = B.grad, None
    parts = torch.zeros_like(B)
    for layer in model:  # its part of the sum, from a model in which the other does not train B
        other = copy.deepcopy(model)
        mine = other[list(model).index(layer)]
        for its in other:
            if its is not mine:
                its.adapters["default"]._parameters["B"] = nn.Parameter(B.detach(), False)
        other(x).sum().backward()
        parts += mine.leaves()["B"].grad
    close(parts, whole)


def test_shared_leaves_belong_to_one_adapter_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 9))
    ac.inject(model, vera(r=2), ["0"])
    assert tuple(model[0].leaves()["B"].shape) == (4, 2)
    ac.inject(model, vera(r=2), ["1"], name="other")
    assert tuple(model[1].leaves("other")["B"].shape) == (9, 2)


# --------------------------------------------------------------------------- failures change nothing


@ac.adapter
def only_wide(W, *, b=8):
    """Works where 8 divides the inputs."""
    n, k = W.shape
    d = ac.param("d", (ac.divide(k, b), b), "ones")
    return W @ ac.diag(ac.reshape(d, (k,)))


@ac.adapter
def bad_start(W):
    """Its initialiser gives the wrong size on the second layer."""
    n, k = W.shape
    return W + ac.diag(ac.param("d", (n,), lambda: torch.zeros(8))) @ W


FAILURES = {
    "equation": (only_wide(), "all-linear", ShapeError, "8 does not divide 6"),
    "initialiser": (bad_start(), "all-linear", LeafError, r"gave \(8,\), wanted \(6,\)"),
    "no linear layer": (lora(r=2), ["first", "norm"], InjectError, "'norm' is a LayerNorm"),
    "dropout": (lora(r=2), "all-linear", AdaptcError, "got 1.5"),
}


def fragile():
    """An equation that works on `first` may fail on `second`."""
    modules = {"first": nn.Linear(8, 8), "norm": nn.LayerNorm(8), "second": nn.Linear(6, 6)}
    model = nn.ModuleDict(modules)
    model["first"].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_inject_leaves_the_model_as_it_was(name):
    adapter, targets, error, text = FAILURES[name]
    model = fragile()
    before = snapshot(model)
    with pytest.raises(error, match=text):
        ac.inject(model, adapter, targets, dropout=1.5 if name == "dropout" else 0.0)
    unchanged(before, model)


def test_an_equation_error_names_the_layer():
    with pytest.raises(ShapeError) as caught:
        ac.inject(fragile(), only_wide(), "all-linear")
    assert any("'second'" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("name", ["taken", "not a name", "0", ""])
def test_a_bad_adapter_name_leaves_the_model_as_it_was(name):
    model = fragile()
    ac.inject(model, lora(r=2), ["second"], name="taken")
    before = snapshot(model)
    with pytest.raises(InjectError, match=f"'{name}'"):
        ac.inject(model, lora(r=2), ["first", "second"], name=name)
    unchanged(before, model)


def test_a_weight_form_after_an_output_form_leaves_the_model_as_it_was():
    model = fragile()
    ac.inject(model, lora_mixture(r=2), ["second"], name="mixture")
    before = snapshot(model)
    with pytest.raises(AdaptcError, match="weight forms first"):
        ac.inject(model, lora(r=2), ["first", "second"], name="after")
    unchanged(before, model)


def test_a_merged_layer_takes_no_adapter():
    model = ac.inject(fragile(), lora(r=2), ["second"])
    ac.merge(model)
    before = snapshot(model)
    with pytest.raises(InjectError, match="merged.*unmerge"):
        ac.inject(model, lora(r=2), "all-linear", name="other")
    unchanged(before, model)


def test_a_model_that_is_a_linear_layer_itself():
    layer = nn.Linear(4, 4)
    with pytest.raises(InjectError, match="AdaptedLinear"):
        ac.inject(layer, lora(r=2), "all-linear")


# --------------------------------------------------------------------------- which adapters are active


def test_set_active_and_disabled():
    model, x = nn.Sequential(nn.Linear(6, 6)).double(), torch.randn(4, 6).double()
    plain = model(x)
    close(ac.inject(model, lora(r=2), ["0"], name="one")(x), plain)
    ac.inject(model, hra(r=2), ["0"], name="two")
    move(model)
    both = model(x)
    ac.set_active(model, ["two", "one"])
    turned = model(x)
    close(turned, Dense.of(model[0])(x))
    assert not torch.allclose(turned, both)
    ac.set_active(model, "one")
    assert not torch.allclose(model(x), both)
    with ac.disabled(model), ac.disabled(model):
        assert torch.equal(model(x), plain)
    ac.set_active(model, [])
    assert torch.equal(model(x), plain)
    ac.set_active(model, ["one", "two"])
    assert torch.equal(model(x), both)
    with pytest.raises(KeyError, match="'three'.*one, two"):
        ac.set_active(model, ["one", "three"])
    assert torch.equal(model(x), both)


def test_disabled_ends_with_an_error_too():
    model = ac.inject(nn.Sequential(nn.Linear(6, 6)), lora(r=2), ["0"])
    move(model)
    want = model(torch.ones(6))
    with pytest.raises(ZeroDivisionError), ac.disabled(model):
        raise ZeroDivisionError
    assert torch.equal(model(torch.ones(6)), want)


# --------------------------------------------------------------------------- a real model


def test_a_transformers_model_from_end_to_end(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=50, intermediate_size=32, **sizes)
    plain = BertForSequenceClassification(config).eval()
    tokens, labels = torch.randint(50, (4, 7)), torch.randint(2, (4,))
    want = plain(tokens).logits
    model = ac.inject(copy.deepcopy(plain), lora(r=2), ["query", "value", "dense"])
    assert len(paths(model)) == 2 * (2 + 3) + 1
    assert torch.allclose(model(tokens).logits, want, atol=1e-6)
    optimizer = torch.optim.AdamW(ac.adapter_parameters(model), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = model(tokens).logits
    ac.save(model, tmp_path)
    assert torch.equal(ac.load(plain, tmp_path)(tokens).logits, trained)
    ac.merge(model)
    assert torch.allclose(model(tokens).logits, trained, atol=1e-5)
    ac.unmerge(model)
    ac.unload(model)
    assert torch.allclose(model(tokens).logits, want, atol=1e-6)


def test_every_weight_form_reaches_the_weight_it_says():
    for name, adapter in WEIGHT_FORMS.items():
        model = ac.inject(nn.Sequential(nn.Linear(16, 24)).double(), adapter, ["0"])
        move(model)
        close(model[0].adapted_weight(), Dense.of(model[0]).weights()[0], name)
