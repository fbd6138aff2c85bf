"""transformers' Conv1D, whose weight is (k, n), beside an nn.Linear with the same numbers."""

import copy
import pickle

import pytest
import torch
from methods_small import WEIGHT_FORMS, K, N, close
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

import adaptc as ac
from adaptc.errors import MergeError
from adaptc.methods import dora, hra, ia3, lora, lora_mixture, road

SOME = {"lora": lora(r=3), "dora": dora(r=3), "hra": hra(r=4), "ia3": ia3(), "road": road(g=4)}
SOME["mixture"] = lora_mixture(r=3)
every = pytest.mark.parametrize("adapter", WEIGHT_FORMS.values(), ids=WEIGHT_FORMS)
some = pytest.mark.parametrize("adapter", SOME.values(), ids=SOME)


def bases(dtype=torch.float64):
    """A Conv1D and the linear layer that does the same."""
    torch.manual_seed(0)
    conv, linear = Conv1D(N, K).to(dtype), nn.Linear(K, N, dtype=dtype)
    with torch.no_grad():
        conv.weight.copy_(linear.weight.T)
        conv.bias.copy_(linear.bias)
    return conv.requires_grad_(False), linear.requires_grad_(False)


def pair(adapter, dtype=torch.float64, dropout=0.0):
    """The same trained adapter on both."""
    conv, linear = (nn.Sequential(base) for base in bases(dtype))
    for model in (conv, linear):
        torch.manual_seed(1)
        ac.inject(model, adapter, ["0"], dropout=dropout)
    with torch.no_grad():
        for a, b in zip(ac.adapter_parameters(conv), ac.adapter_parameters(linear), strict=True):
            close(a, b)
            a.add_(0.3 * torch.randn_like(a))
            b.copy_(a)
        for a, b in zip(conv[0].adapters.buffers(), linear[0].adapters.buffers(), strict=True):
            b.copy_(a)
    return conv, linear


def tokens(*lead, dtype=torch.float64):
    return torch.randn(*(lead or (5,)), K, dtype=dtype)


@every
def test_forward_and_gradients_are_those_of_the_linear_twin(adapter):
    conv, linear = pair(adapter)
    x = tokens(2, 3).requires_grad_()
    steps = []
    for model in (conv, linear):
        model[0].weight.requires_grad_()
        model[0].bias.requires_grad_()
        y = model(x)
        wanted = [x, *ac.adapter_parameters(model), model[0].weight, model[0].bias]
        found = torch.autograd.grad(y.square().sum(), wanted, allow_unused=True)
        steps.append([y, *(torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True))])
    assert steps[0][-2].shape == (K, N)
    steps[0][-2] = steps[0][-2].T
    for i, (a, b) in enumerate(zip(*steps, strict=True)):
        close(a, b, f"result {i}", terms=100.0)


@some
def test_without_an_adapter_it_is_conv1d(adapter):
    base, x = bases()[0], tokens(2, 3)
    want, layer = base(x), ac.AdaptedLinear(base, adapter)
    assert (layer.in_features, layer.out_features) == (K, N)
    with ac.disabled(layer):
        close(layer(x), want)
    close(layer(x), want)


@every
def test_merge_and_unmerge(adapter):
    (conv, linear), x = pair(adapter), tokens()
    layer, want = conv[0], conv(x)
    weight, bias = layer.weight.clone(), layer.bias.clone()
    close(layer.adapted_weight(), linear[0].adapted_weight())
    close(layer.delta_weight(), linear[0].delta_weight(), terms=10.0)
    ac.merge(conv)
    close(conv(x), want)
    close(layer.weight, linear[0].adapted_weight().T)
    with ac.disabled(conv):
        close(conv(x), bases()[0](x))
    plain = ac.unload(copy.deepcopy(conv))
    assert type(plain[0]) is Conv1D
    close(plain(x), want)
    ac.unmerge(conv)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.bias, bias)
    assert layer.weight.is_contiguous()
    plain = ac.unload(conv)
    assert torch.equal(plain(x), bases()[0](x))


def test_an_output_form_does_not_merge():
    with pytest.raises(MergeError, match="adapts the output"):
        ac.merge(pair(SOME["mixture"])[0])


@some
def test_files_pickles_copies_and_states(adapter, tmp_path):
    (conv, _), x = pair(adapter), tokens()
    want = conv(x)
    ac.save(conv, tmp_path)
    close(ac.load(nn.Sequential(bases()[0]), tmp_path)(x), want)
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(other(x), want)
    state = conv.state_dict()
    assert list(state)[:2] == ["0.weight", "0.bias"]
    assert state["0.weight"].shape == (K, N)
    other = ac.inject(nn.Sequential(bases()[0]), adapter, ["0"])
    other.load_state_dict(state)
    assert torch.equal(other(x), want)
    other = ac.inject(nn.Sequential(bases()[0]), adapter, ["0"])
    other.load_state_dict(nn.Sequential(bases()[0]).state_dict(), strict=True)
    close(other(x), bases()[0](x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["lora", "dora", "hra", "ia3"])
def test_in_low_precision_unmerge_is_exact(name, dtype):
    conv = pair(SOME[name], dtype)[0]
    before = conv[0].weight.clone()
    assert conv(tokens(dtype=dtype)).dtype == dtype
    wide = conv[0].adapted_weight()
    ac.merge(conv)
    assert torch.equal(conv[0].weight, wide.T.to(dtype))
    ac.unmerge(conv)
    assert torch.equal(conv[0].weight, before)


@some
def test_dropout(adapter):
    conv, linear = pair(adapter, dropout=0.4)
    x, found = tokens(), []
    for model in (conv, linear):
        torch.manual_seed(9)
        found.append(model(x))
    close(*found)


def test_dora_keeps_its_magnitude_by_output():
    layer = ac.AdaptedLinear(bases()[0], dora(r=3))
    close(layer.leaves()["m"], bases()[1].weight.norm(dim=1))
    assert layer.leaves()["A"].shape == (3, K)


# --------------------------------------------------------------------------- GPT-2


def gpt2():
    """A tiny one, the same in every call."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return GPT2LMHeadModel(config)


@pytest.mark.parametrize("targets", ["all-linear", ["c_attn"], r".*\.mlp\.c_(fc|proj)"], ids=str)
@pytest.mark.parametrize("name", ["lora", "dora", "ia3"])
def test_gpt2(name, targets, tmp_path):
    model, ids = gpt2(), torch.arange(12).reshape(2, 6)
    want = model(ids).logits
    ac.inject(model, SOME[name], targets)
    count = {"all-linear": 8}.get(str(targets), 2 if isinstance(targets, list) else 4)
    assert sum(isinstance(m, ac.AdaptedLinear) for m in model.modules()) == count
    assert torch.allclose(model(ids).logits, want, atol=1e-5)
    assert type(model.lm_head) is nn.Linear
    optimiser = torch.optim.AdamW(ac.adapter_parameters(model), lr=1e-2)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    trained = model(ids).logits
    ac.save(model, tmp_path)
    assert torch.allclose(ac.load(gpt2(), tmp_path).eval()(ids).logits, trained, atol=1e-5)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    ac.merge(model)
    assert torch.allclose(model(ids).logits, trained, atol=1e-4)
    ac.unmerge(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.allclose(ac.unload(model)(ids).logits, gpt2().eval()(ids).logits)
