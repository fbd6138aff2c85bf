"""Base weights that come after the adapters: from the meta device, or loaded over those that were there."""

import copy

import pytest
import torch
from methods_small import K, N, close, move
from torch import nn

import adaptc as ac
from adaptc.errors import AdaptcError, MergeError, UnsupportedError
from adaptc.methods import dora, hra, lora, pissa, vera

D = 12


@ac.adapter
def tied_lora(W, *, r=3):
    """A and B of all layers, trained; as large as the largest."""
    n, k = W.shape
    A = ac.param("A", (r, k), "kaiming_uniform", shared="A")
    B = ac.param("B", (n, r), "kaiming_uniform", shared="B")
    u, v = ac.param("u", (r,), "ones"), ac.param("v", (n,), "zeros")
    return W + ac.diag(v) @ B @ ac.diag(u) @ A


METHODS = {a.name: a for a in (lora(r=3), pissa(r=3), dora(r=3), hra(r=4), vera(r=5), tied_lora())}
DERIVED = {"pissa": "A", "dora": "m"}
every = pytest.mark.parametrize("adapter", METHODS.values(), ids=METHODS)
from_w = pytest.mark.parametrize("adapter", [METHODS[n] for n in DERIVED], ids=DERIVED)


def net(device=None, dtype=torch.float64, seed=0):
    """Two layers of different sizes."""
    torch.manual_seed(seed)
    with torch.device(device or "cpu"):
        return nn.Sequential(nn.Linear(K, N, dtype=dtype), nn.Tanh(), nn.Linear(N, D, bias=False, dtype=dtype))


def assign(model):
    model.load_state_dict(net().state_dict(), assign=True)


def empty_then_load(model):
    model.to_empty(device="cpu")
    model.load_state_dict(net().state_dict())


def weights_then_reset(model):
    for name, p in net().named_parameters():
        layer = model.get_submodule(name.partition(".")[0])
        layer._parameters[name.rpartition(".")[2]] = nn.Parameter(p.detach(), requires_grad=False)
    ac.reset(model)


def empty_then_copy_then_reset(model):
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, p in net().named_parameters():
            model.get_parameter(name).copy_(p)
    ac.reset(model)


WAYS = {f.__name__: f for f in (assign, empty_then_load, weights_then_reset, empty_then_copy_then_reset)}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
emptied = [pytest.param(way, id=n) for n, way in WAYS.items()]


def late(adapter, way):
    """An adapter that was there before the weights."""
    model = ac.inject(net("meta"), adapter, "all-linear")
    torch.manual_seed(7)
    way(model)
    return model


@every
@ways
def test_weights_that_come_later_give_what_attaching_to_them_gives(adapter, way):
    model, plain, x = late(adapter, way), net(), torch.randn(5, K, dtype=torch.float64)
    want = ac.inject(net(), adapter, "all-linear")
    assert all(t.device.type == "cpu" for t in (*model.parameters(), *model.buffers()))
    close(model(x), plain(x))
    for layer, other in ((model[0], want[0]), (model[2], want[2])):
        assert {n: (t.shape, t.dtype, t.requires_grad) for n, t in layer.leaves().items()} == {
            n: (t.shape, t.dtype, t.requires_grad) for n, t in other.leaves().items()
        }
        frozen = [n for n, t in other.leaves().items() if not t.requires_grad]
        for name in (*frozen, *(n for n in layer.leaves() if adapter.name == "pissa" or n == "m")):
            close(layer.leaves()[name], other.leaves()[name], name)
    flags = {n: p.requires_grad for n, p in want.named_parameters(remove_duplicate=False)}
    assert {n: p.requires_grad for n, p in model.named_parameters(remove_duplicate=False)} == flags


@pytest.mark.parametrize("way", emptied)
@pytest.mark.parametrize("name", ["vera", "tied_lora"])
def test_shared_leaves_stay_one(name, way):
    model = late(METHODS[name], way)
    one, other = model[0].leaves(), model[2].leaves()
    for leaf in "AB":
        assert one[leaf] is other[leaf]
        assert one[leaf].shape[0 if leaf == "B" else 1] == N
    want = sum(p.numel() for p in ac.adapter_parameters(ac.inject(net(), METHODS[name], "all-linear")))
    assert sum(p.numel() for p in ac.adapter_parameters(model)) == want
    assert len(ac.adapter_parameters(model)) == len({id(p) for p in ac.adapter_parameters(model)})


@every
@ways
def test_a_training_step_reaches_every_leaf(adapter, way):
    model = late(adapter, way)
    move(model)
    model(torch.randn(5, K, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ac.adapter_parameters(model))


@every
def test_before_there_are_sizes_and_no_values(adapter):
    model = ac.inject(net("meta"), adapter, "all-linear")
    assert all(p.is_meta for p in ac.adapter_parameters(model))
    with pytest.raises(UnsupportedError, match=r"meta device.*ac.reset\(model\)"):
        model(torch.randn(5, K, dtype=torch.float64))
    model.to_empty(device="cpu")
    with pytest.raises(UnsupportedError, match=r"meta device.*ac.reset\(model\)"):
        model(torch.randn(5, K, dtype=torch.float64))


@every
def test_on_the_meta_device_a_call_gives_the_shape(adapter):
    y = ac.inject(net("meta"), adapter, "all-linear")(torch.empty(5, K, dtype=torch.float64, device="meta"))
    assert y.shape == (5, D)
    assert y.is_meta


@every
def test_a_state_with_leaves_brings_them(adapter):
    want = ac.inject(net(), adapter, "all-linear")
    move(want)
    x = torch.randn(5, K, dtype=torch.float64)
    model = ac.inject(net("meta"), adapter, "all-linear")
    model.load_state_dict(want.state_dict(), assign=True)
    close(model(x), want(x))
    model = ac.inject(net(), adapter, "all-linear")
    model.load_state_dict(want.state_dict())
    close(model(x), want(x))


@pytest.mark.parametrize("adapter", [pytest.param(a, id=n) for n, a in METHODS.items()])
def test_an_adapter_from_a_file_stays_when_the_weights_come(adapter, tmp_path):
    want, x = ac.inject(net(), adapter, "all-linear"), torch.randn(5, K, dtype=torch.float64)
    move(want)
    ac.save(want, tmp_path)
    model = ac.load(net("meta"), tmp_path)
    model.load_state_dict(net().state_dict(), assign=True)
    close(model(x), want(x))


@pytest.mark.parametrize("name", ["lora", "hra", "vera", "tied_lora"])
def test_new_weights_leave_what_does_not_come_from_them(name):
    model = ac.inject(net(), METHODS[name], "all-linear")
    move(model)
    before, x = [t.clone() for t in ac.adapter_parameters(model)], torch.randn(5, K, dtype=torch.float64)
    model.load_state_dict(net(seed=1).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(before, ac.adapter_parameters(model), strict=True))
    moved = ac.inject(net(seed=1), METHODS[name], "all-linear")
    moved.load_state_dict({**moved.state_dict(), **{k: v for k, v in model.state_dict().items() if "adapters" in k}})
    close(model(x), moved(x))


@from_w
@pytest.mark.parametrize("by", ["model", "layer", "copy"])
def test_new_weights_renew_what_comes_from_them(adapter, by):
    model, x = ac.inject(net(), adapter, "all-linear"), torch.randn(5, K, dtype=torch.float64)
    parameters = [id(p) for p in ac.adapter_parameters(model)]
    if by == "copy":
        model = copy.deepcopy(model)
    if by == "layer":
        for i in (0, 2):
            model[i].load_state_dict(net(seed=1)[i].state_dict())
    else:
        model.load_state_dict(net(seed=1).state_dict())
    close(model(x), net(seed=1)(x))
    leaf, want = DERIVED[adapter.name], ac.inject(net(seed=1), adapter, "all-linear")
    close(model[0].leaves()[leaf], want[0].leaves()[leaf])
    if by != "copy":
        assert [id(p) for p in ac.adapter_parameters(model)] == parameters, "an optimiser holds them"


@from_w
@pytest.mark.parametrize("how", ["trained", "loaded"])
def test_new_weights_are_refused_over_trained_leaves(adapter, how, tmp_path):
    model = ac.inject(net(), adapter, "all-linear")
    if how == "trained":
        model(torch.randn(5, K, dtype=torch.float64)).square().sum().backward()
        torch.optim.AdamW(ac.adapter_parameters(model), lr=1e-3).step()
    else:
        ac.save(model, tmp_path)
        model = ac.load(net(), tmp_path)
    before, x = copy.deepcopy(model.state_dict()), torch.randn(5, K, dtype=torch.float64)
    want = model(x)
    with pytest.raises(RuntimeError, match=r"trained on the old weight.*ac.reset\(model\)"):
        model.load_state_dict(net(seed=1).state_dict())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(model(x), want)
    ac.reset(model)
    model.load_state_dict(net(seed=1).state_dict())
    close(model(x), net(seed=1)(x))


@every
def test_reset_starts_again_from_the_present_weights(adapter):
    model, x = ac.inject(net(), adapter, "all-linear"), torch.randn(5, K, dtype=torch.float64)
    parameters = [id(p) for p in ac.adapter_parameters(model)]
    move(model)
    with torch.no_grad():
        for p, new in zip((model[0].weight, model[0].bias, model[2].weight), net(seed=1).parameters(), strict=True):
            p.copy_(new)
    ac.reset(model)
    close(model(x), net(seed=1)(x))
    assert [id(p) for p in ac.adapter_parameters(model)] == parameters


def test_reset_of_a_merged_model_changes_nothing():
    model = ac.inject(net(), lora(r=3), "all-linear")
    move(model)
    ac.merge(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(MergeError, match=r"'0' is merged: unmerge"):
        ac.reset(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@every
def test_refresh_after_an_edit_that_torch_does_not_count(adapter):
    model, x = ac.inject(net(), adapter, "all-linear").eval(), torch.randn(5, K, dtype=torch.float64)
    with torch.no_grad():
        model(x)
        for p in (*ac.adapter_parameters(model), model[0].weight):
            p.data = p.data + 0.1
        ac.refresh(model)
        want = x @ model[0].adapted_weight().T + model[0].bias
        close(model[0](x), want)


def test_merging_on_the_meta_device_is_refused():
    model = ac.inject(net("meta"), lora(r=3), "all-linear")
    with pytest.raises(AdaptcError):
        ac.merge(model)


@every
def test_a_model_that_went_to_the_meta_device_starts_again(adapter):
    model, x = ac.inject(net(), adapter, "all-linear"), torch.randn(5, K, dtype=torch.float64)
    move(model)
    model.to("meta").to_empty(device="cpu")
    with torch.no_grad():
        for t in (*model.parameters(), *model.buffers()):
            t.fill_(torch.nan)
    model.load_state_dict(net().state_dict())
    close(model(x), net()(x))


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("vera", 0),
        ("vera", 2),
        ("tied_lora", 0),
        ("tied_lora", 2),
    ],
)
def test_some_layers_on_the_meta_device(name, first):
    model, x = net(), torch.randn(5, K, dtype=torch.float64)
    model[first].to("meta")
    ac.inject(model, METHODS[name], "all-linear")
    model.load_state_dict(net().state_dict(), assign=True)
    close(model(x), net()(x))
    assert model[0].leaves()["A"] is model[2].leaves()["A"]
