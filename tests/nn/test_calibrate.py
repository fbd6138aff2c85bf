"""Statistics of layers measured on data, against their definitions, and equations that start from them."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from methods_small import close
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

import adaptc as ac
from adaptc.errors import InjectError, LeafError
from adaptc.methods import lora

K, H, N = 6, 10, 4
Output = namedtuple("Output", ["loss", "logits"])


class Net(nn.Module):
    """Two linear layers; its output is plain, or has a loss where labels are given."""

    def __init__(self, dtype=torch.float64, conv=False):
        super().__init__()
        self.first = (Conv1D(H, K) if conv else nn.Linear(K, H)).to(dtype)
        self.second = nn.Linear(H, N, bias=False, dtype=dtype)

    def forward(self, x, labels=None):
        logits = self.second(torch.tanh(self.first(x)))
        return logits if labels is None else Output(F.mse_loss(logits, labels), logits)


def net(dtype=torch.float64, conv=False):
    """The same weights in every call."""
    torch.manual_seed(3)
    model = Net(dtype, conv)
    if conv:
        nn.init.normal_(model.first.weight, std=0.5)
    return model


def batches(dtype=torch.float64, lead=((5,), (2,), (3, 4))):
    """Inputs and labels of several sizes, 2-D and 3-D."""
    torch.manual_seed(4)
    return [(torch.randn(*m, K, dtype=dtype), torch.randn(*m, N, dtype=dtype)) for m in lead]


@ac.adapter(identity=False)
def measured(W, *, of="second_moment"):
    """Shows what was measured as a leaf."""
    shape = W.shape if of.startswith("gradient") else (W.shape[1], W.shape[1])
    C = ac.param("C", shape, ac.given(of, shape, at="attach"))
    return W + C if of.startswith("gradient") else W @ C


def found(model, of="second_moment", layer="second"):
    """What was measured on a layer."""
    ac.inject(model, measured(of=of), [layer])
    return model.get_submodule(layer).leaves()["C"].detach()


def moments(model, data):
    """The mean of h h^T over all tokens that reach the second layer, and of x x^T."""
    xs = torch.cat([x.reshape(-1, K) for x, _ in data])
    hs = torch.tanh(model.first(xs)).detach()
    return [(t.T @ t / len(t)).to(torch.promote_types(t.dtype, torch.float32)) for t in (xs, hs)]


def mean_gradients(model, data):
    """Autograd's, over batches."""
    total = [torch.zeros_like(w) for w in (model.first.weight, model.second.weight)]
    for x, labels in data:
        gs = torch.autograd.grad(model(x, labels).loss, [model.first.weight, model.second.weight])
        total = [t + g / len(data) for t, g in zip(total, gs, strict=True)]
    return total


@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv1d"])
def test_the_second_moment(conv):
    model, data = net(conv=conv), batches()
    want = moments(model, data)
    assert ac.calibrate(model, [x for x, _ in data], of="second_moment") is model
    close(found(model, layer="first"), want[0])
    close(found(model, layer="second"), want[1])


@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv1d"])
def test_the_gradient(conv):
    model, data = net(conv=conv), batches()
    first, second = mean_gradients(model, data)
    ac.calibrate(model, data, of="gradient")
    close(found(model, "gradient", "first"), first.T if conv else first)
    close(found(model, "gradient", "second"), second)


SHAPES = {
    "tuples": lambda x, labels: (x, labels),
    "lists": lambda x, labels: [x, labels],
    "mappings": lambda x, labels: {"labels": labels, "x": x},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_batches_of_any_shape_and_a_generator(shape):
    model, data = net(), batches()
    want = mean_gradients(model, data)[1]
    ac.calibrate(model, (shape(*b) for b in data), of="gradient")
    close(found(model, "gradient"), want)


def test_a_scalar_output_or_a_loss_of_ones_own():
    data = batches()
    model, want = net(), mean_gradients(net(), data)[1]

    def loss(output, batch):
        return F.mse_loss(output, batch["labels"])

    plain = [SimpleNamespace(x=x, labels=labels) for x, labels in data]
    model.forward = lambda batch: Net.forward(model, batch.x, batch.labels).loss
    ac.calibrate(model, plain, of="gradient")
    close(found(model, "gradient"), want)
    model = net()
    model.forward = lambda x, labels: Net.forward(model, x)
    ac.calibrate(model, [{"x": x, "labels": labels} for x, labels in data], of="gradient", loss=loss)
    close(found(model, "gradient"), want)


def test_one_tensor_is_one_argument():
    model, data = net(), batches(lead=((5,),))
    ac.calibrate(model, data[0][:1], of="second_moment")
    close(found(model), moments(net(), data)[1])


@pytest.mark.parametrize("of", ["second_moment", "gradient"])
def test_sums_of_a_16_bit_model_are_in_float32(of):
    data = batches(torch.bfloat16, ((300,),) * 20)
    model, eps = net(torch.bfloat16), torch.finfo(torch.bfloat16).eps
    if of == "second_moment":
        hs = torch.cat([torch.tanh(model.first(x)).detach().float() for x, _ in data])
        want, limit = hs.T @ hs / len(hs), 1e-5
    else:
        gs = [torch.autograd.grad(model(*b).loss, model.second.weight)[0].float() for b in data]
        want, limit = torch.stack(gs).mean(0), eps / 100
    ac.calibrate(model, data, of=of)
    value = found(model, of)
    assert value.dtype == torch.float32
    assert (value - want).norm() <= limit * want.norm()


def test_tags_keep_statistics_apart():
    model, (safety, task, _) = net(), batches()
    ac.calibrate(model, [safety], of="second_moment.safety")
    ac.calibrate(model, [task], of="second_moment.task")
    close(found(model, "second_moment.safety", "first"), moments(net(), [safety])[0])
    other = net()
    ac.calibrate(other, [task], of="second_moment.task")
    ac.calibrate(other, [safety], of="second_moment.task")
    close(found(other, "second_moment.task", "first"), moments(net(), [safety])[0])


def test_only_the_targets_are_measured():
    model = net()
    ac.calibrate(model, batches(), of="second_moment", target_modules=["first"])
    found(model, layer="first")
    with pytest.raises(LeafError, match="second_moment"):
        found(model)


@pytest.mark.parametrize("of", ["second_moment", "gradient"])
def test_a_model_with_adapters_is_measured_with_them(of):
    model, data = net(), batches()
    ac.inject(model, lora(r=2), "all-linear", name="lora")
    with torch.no_grad():
        for p in ac.adapter_parameters(model):
            p.normal_()
    twin = net()
    with torch.no_grad():
        twin.first.weight.copy_(model.first.adapted_weight())
        twin.second.weight.copy_(model.second.adapted_weight())
    want = moments(twin, data)[1] if of == "second_moment" else mean_gradients(twin, data)[1]
    close(found(ac.calibrate(model, data, of=of), of), want)


def test_a_layer_that_is_called_by_keyword():
    model, data = net(), batches()
    model.forward = lambda x: model.second(input=torch.tanh(model.first(input=x)))
    close(found(ac.calibrate(model, [x for x, _ in data], of="second_moment")), moments(net(), data)[1])


def test_a_layer_that_is_called_twice():
    model = nn.Sequential(nn.Linear(K, K).double())
    model.append(model[0])
    x = torch.randn(5, K, dtype=torch.float64)
    both = torch.cat([x, model[0](x).detach()])
    ac.calibrate(model, [x], of="second_moment", target_modules=["0"])
    close(found(model, layer="0"), both.T @ both / 10)


@pytest.mark.parametrize("of", ["second_moment", "gradient"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(of, fails):
    model, data = net(), batches()
    model.first.eval().requires_grad_(False)
    model.second.weight.grad = torch.ones_like(model.second.weight)
    hooks = [[len(v) for k, v in m.__dict__.items() if "hooks" in k] for m in model.modules()]
    before = {n: (p, p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()}
    modes, state = [m.training for m in model.modules()], torch.random.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError):
            ac.calibrate(model, [*data, (torch.zeros(2, K + 1).double(), data[0][1])], of=of)
    else:
        ac.calibrate(model, data, of=of)
    for name, p in model.named_parameters():
        assert p is before[name][0]
        assert torch.equal(p, before[name][1])
        assert p.requires_grad == before[name][2]
    assert model.first.weight.grad is None
    assert torch.equal(model.second.weight.grad, torch.ones(N, H).double())
    assert [m.training for m in model.modules()] == modes
    assert [[len(v) for k, v in m.__dict__.items() if "hooks" in k] for m in model.modules()] == hooks
    assert torch.equal(torch.random.get_rng_state(), state)
    assert list(model.state_dict()) == ["first.weight", "first.bias", "second.weight"]
    if fails:
        with pytest.raises(LeafError):
            found(model, of)


ERRORS = [
    ({"of": "hessian", "batches": batches()}, "second_moment.*'hessian'"),
    ({"of": "gradient", "batches": []}, "at least one batch"),
    ({"of": "second_moment", "batches": []}, "at least one batch"),
    ({"of": "gradient", "batches": [batches()[0][0]]}, r"no scalar loss.*loss="),
    ({"of": "second_moment", "batches": batches(), "target_modules": ["third"]}, "third"),
]


@pytest.mark.parametrize(("options", "text"), ERRORS)
def test_what_cannot_be_measured(options, text):
    with pytest.raises((LeafError, InjectError), match=text):
        ac.calibrate(net(), **options)


@pytest.mark.parametrize("of", ["second_moment", "gradient", "second_moment.safety"])
def test_a_missing_statistic_names_what_to_call(of):
    model = net()
    with pytest.raises(LeafError) as caught:
        found(model, of)
    assert f'ac.calibrate(model, batches, of="{of}")' in str(caught.value)
    assert f"{__file__}:" in str(caught.value)
    assert type(model.second) is nn.Linear


# --------------------------------------------------------------------------- equations that start from data


@ac.adapter
def corda(W, *, r=3, alpha=6.0, damp=0.01):
    """Context-oriented decomposition."""
    (n, k), s = W.shape, alpha / r
    C = ac.given("second_moment", (k, k), at="attach")
    C = C + (damp / k) * ac.einsum("ii->", C) * ac.identity(k)
    U, S, Vt = ac.svd(W @ C, r)
    A = ac.param("A", (r, k), ac.diag(ac.sqrt(S / s)) @ Vt @ ac.inverse(C))
    B = ac.param("B", (n, r), U @ ac.diag(ac.sqrt(S / s)))
    return W + s * (B @ A) - ac.initial(s * (B @ A))


@ac.adapter(identity=False)
def lora_sb(W, *, r=3, alpha=6.0):
    """A step along the gradient, trained in its own basis."""
    U, S, Vt = ac.svd(ac.given("gradient", W.shape, at="attach"), r)
    R = ac.param("R", (r, r), -ac.diag(S))
    return W + (alpha / r) * (U @ R @ Vt)


def test_corda_starts_from_the_moments_and_its_file_needs_none(tmp_path):
    model, data = net(), batches()
    C = moments(model, data)[1]
    C = C + 0.01 / H * C.trace() * torch.eye(H, dtype=torch.float64)
    W, x = model.second.weight.detach().clone(), torch.randn(4, K, dtype=torch.float64)
    want = model(x)
    ac.inject(ac.calibrate(model, data, of="second_moment"), corda(), ["second"])
    v, (U, S, Vt) = model.second.leaves(), torch.linalg.svd(W @ C)
    close(v["B"] @ v["A"] * 2, U[:, :3] @ torch.diag(S[:3]) @ Vt[:3] @ torch.linalg.inv(C))
    close(model(x), want)
    with torch.no_grad():
        v["A"].mul_(1.5)
    ac.save(model, tmp_path)
    close(ac.load(net(), tmp_path)(x), model(x))


def test_lora_sb():
    model, data = net(), batches()
    G, W = mean_gradients(model, data)[1], model.second.weight.detach().clone()
    ac.inject(ac.calibrate(model, data, of="gradient"), lora_sb(), ["second"])
    U, S, Vt = torch.linalg.svd(G)
    close(model.second.adapted_weight(), W - 2 * U[:, :3] @ torch.diag(S[:3]) @ Vt[:3])


def test_a_reset_measures_nothing_again():
    model, data = net(), batches()
    ac.inject(ac.calibrate(model, data, of="second_moment"), corda(), ["second"])
    start = model.second.leaves()["A"].clone()
    with torch.no_grad():
        model.second.leaves()["A"].zero_()
    ac.reset(model)
    assert torch.equal(model.second.leaves()["A"], start)


@pytest.mark.parametrize("of", ["second_moment", "gradient"])
def test_running_statistics_and_modes_stay(of):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2)).train()
    model[2].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ac.calibrate(model, [torch.randn(8, 4)], of, loss=lambda y, _: y.square().mean())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model] == [True, True, False, True]
