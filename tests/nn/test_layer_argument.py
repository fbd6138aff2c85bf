"""Methods that ask for the layer they adapt: its name, kind and index."""

import copy
import pickle

import pytest
import torch
from methods_small import close, move
from torch import nn
from torch.nn import functional as F

import adaptc as ac
from adaptc.equation import Layer
from adaptc.errors import AdaptcError, EquationError, HyperparameterError, LoadError

D, LAYERS = 8, 4


@ac.adapter
def reslora(W, *, layer, r=2, alpha=4.0, depth=2):
    """Block shortcut: layer l also adds the updates of the layers before it, its own A and B shared on."""
    n, k = W.shape
    for i in range(max(0, layer.index - depth), layer.index + 1):
        A = ac.param(f"A{i}", (r, k), "kaiming_uniform", shared=f"{layer.kind}.A{i}")
        B = ac.param(f"B{i}", (n, r), "zeros", shared=f"{layer.kind}.B{i}")
        W = W + (alpha / r) * (B @ A)
    return W


@ac.adapter(identity=False)
def by_place(W, bias, *, layer, base=0.5):
    """A number from the index, a bias for queries alone."""
    c = ac.param("c", (), base * ((layer.index or 0) + 1))
    return c * W, bias + ac.param("b", bias.shape, "ones") if layer.kind == "q_proj" else bias


@ac.adapter
def growing(W, *, layer, r=2):
    """The rank grows with depth."""
    rank = r + (layer.index or 0)
    A = ac.param("A", (rank, W.shape[1]), "kaiming_uniform")
    return W + ac.param("B", (W.shape[0], rank), "zeros") @ A


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(D, D, dtype=torch.float64)
        self.v_proj = nn.Linear(D, D, dtype=torch.float64)

    def forward(self, x):
        return torch.tanh(self.q_proj(x)) + self.v_proj(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, x):
        for block in self.layers:
            x = block(x)
        return x


def net():
    """The same weights in every call."""
    torch.manual_seed(0)
    return Net()


def adapted(adapter=None, targets=("q_proj", "v_proj")):
    """A trained model."""
    model = ac.inject(net(), adapter or reslora(), targets)
    move(model)
    return model


def tokens():
    return torch.randn(5, D, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "kind", "index"),
    [
        ("model.layers.11.self_attn.q_proj", "q_proj", 11),
        ("h.3.mlp.fc2", "fc2", 2),
        ("lm_head", "lm_head", None),
        ("0", "0", 0),
        ("", "", None),
        ("a.b12c.d", "d", 12),
    ],
)
def test_what_a_layer_says_of_itself(name, kind, index):
    layer = Layer(name)
    assert (layer.name, layer.kind, layer.index) == (name, kind, index)
    assert (layer.kernel_size, layer.groups) == ((1, 1), 1)


def test_every_layer_is_asked_by_its_own_path():
    seen = []

    @ac.adapter
    def asks(W, *, layer):
        seen.append((layer.name, layer.kind, layer.index))
        return W + ac.param("D", W.shape, "zeros")

    ac.inject(net(), asks(), ["q_proj"])
    assert set(seen) == {(f"layers.{i}.q_proj", "q_proj", i) for i in range(LAYERS)}


def test_layers_share_by_kind_and_index():
    model = adapted()
    for kind in ("q_proj", "v_proj"):
        layers = [getattr(b, kind) for b in model.layers]
        for i, layer in enumerate(layers):
            assert set(layer.leaves()) == {f"{a}{j}" for a in "AB" for j in range(max(0, i - 2), i + 1)}
        for j in range(LAYERS):
            holders = [layer.leaves()[f"A{j}"] for layer in layers[j : j + 3]]
            assert all(h is holders[0] for h in holders)
    assert model.layers[0].q_proj.leaves()["A0"] is not model.layers[0].v_proj.leaves()["A0"]
    assert len(ac.adapter_parameters(model)) == 2 * 2 * LAYERS


def dense(model, x):
    """reslora in plain torch."""
    for i, block in enumerate(model.layers):
        ys = []
        for layer in (block.q_proj, block.v_proj):
            v, W = layer.leaves(), layer.weight
            for j in range(max(0, i - 2), i + 1):
                W = W + 2 * v[f"B{j}"] @ v[f"A{j}"]
            ys.append(F.linear(x, W, layer.bias))
        x = torch.tanh(ys[0]) + ys[1]
    return x


def test_output_and_gradients_of_reslora():
    model, x = adapted(), tokens().requires_grad_()
    wanted = [x, *ac.adapter_parameters(model)]
    found = []
    for y in (model(x), dense(model, x)):
        found.append([y, *torch.autograd.grad(y.square().sum(), wanted)])
    for a, b in zip(*found, strict=True):
        close(a, b)


@pytest.mark.parametrize("adapter", [reslora(), by_place(), growing()], ids=lambda a: a.name)
def test_files_copies_states_and_merges(adapter, tmp_path):
    model, x = adapted(adapter), tokens()
    want = model(x)
    ac.save(model, tmp_path)
    close(ac.load(net(), tmp_path)(x), want)
    close(ac.load(adapted(adapter), tmp_path)(x), want)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), want)
        assert len(ac.adapter_parameters(other)) == len(ac.adapter_parameters(model))
    other = ac.inject(net(), adapter, ["q_proj", "v_proj"])
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), want)
    ac.merge(model)
    close(model(x), want)
    ac.unmerge(model)
    assert torch.equal(model(x), want)
    ac.reset(model)
    fresh = ac.inject(net(), adapter, ["q_proj", "v_proj"])
    if adapter.name == "by_place":
        close(model(x), fresh(x))
    else:
        close(model(x), net()(x))


def test_what_a_method_does_differs_by_layer():
    model = ac.inject(net(), by_place(), ["q_proj", "v_proj"])
    for i, block in enumerate(model.layers):
        close(block.q_proj.adapted_weight(), 0.5 * (i + 1) * block.q_proj.weight)
        assert set(block.q_proj.leaves()) == {"c", "b"}
        assert set(block.v_proj.leaves()) == {"c"}
    model = ac.inject(net(), growing(), ["q_proj"])
    assert [b.q_proj.leaves()["A"].shape[0] for b in model.layers] == [2, 3, 4, 5]


def test_a_file_does_not_fit_a_layer_of_another_name(tmp_path):
    ac.save(adapted(growing(), ["q_proj"]), tmp_path)
    other = net()
    other.layers = other.layers[:2]
    before = [type(m) for m in other.modules()]
    with pytest.raises(LoadError, match=r"layers\.[23]\.q_proj"):
        ac.load(other, tmp_path)
    assert [type(m) for m in other.modules()] == before


def test_a_layer_without_an_index_is_an_error_of_the_equation():
    with pytest.raises(EquationError, match=r"reslora\(.*NoneType.*test_layer_argument.py:\d+"):
        ac.AdaptedLinear(nn.Linear(D, D), reslora())


def test_a_layer_of_its_own_has_no_name():
    layer = ac.AdaptedLinear(nn.Linear(D, D, dtype=torch.float64), growing(r=3))
    assert layer.leaves()["A"].shape == (3, D)
    assert ac.Linear(D, D, adapter=growing(r=3)).leaves()["A"].shape == (3, D)


def test_the_keyword_is_not_a_hyper_parameter():
    assert repr(growing()) == "growing(r=2)"
    with pytest.raises(HyperparameterError, match="'layer'"):
        growing(layer=1)


def test_reports_of_a_method_that_asks():
    assert "B @ A" in str(growing().formula)
    assert ac.explain(growing(), 16, 8, 4).facts["formula"]
    ac.verify(growing(), 12, 8)


def test_an_unknown_attribute_of_a_layer_names_the_line():
    @ac.adapter
    def wrong(W, *, layer):
        return W + ac.param("D", (layer.depth, 1), "zeros")

    with pytest.raises(AdaptcError, match=r"depth.*test_layer_argument.py:\d+"):
        ac.inject(net(), wrong(), ["q_proj"])
