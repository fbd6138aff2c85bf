"""Values that are held between calls without gradients are never used when they are old."""

import copy

import pytest
import torch
from hoisting_small import K, N, add_in_no_grad, assert_right, every, every_held, net, rows, shift
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import SGD, AdamW

import adaptc as ac
from adaptc.methods import hra, lora, oft
from adaptc.nn.linear import AdaptedLinear


def train(model, make, steps=2, compiled=None):
    """Steps of an optimizer, and a look at the values after each."""
    optimizer = make(ac.adapter_parameters(model))
    step = torch.compile(optimizer.step, backend=compiled) if compiled else optimizer.step
    for _ in range(steps):
        before = model(rows()).detach().norm()
        model(rows()).square().mean().backward()
        step()
        assert_right(model)
        assert before > 0


OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "sgd foreach": lambda p: SGD(p, lr=0.1, foreach=True),
    "sgd fused": lambda p: SGD(p, lr=0.1, fused=True),
    "adamw": lambda p: AdamW(p, lr=0.1, foreach=False),
    "adamw foreach": lambda p: AdamW(p, lr=0.1, foreach=True),
    "adamw fused": lambda p: AdamW(p, lr=0.1, fused=True),
}


@every
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_after_a_step_of_an_optimizer(adapter, make):
    model = net(adapter, layers=2)
    assert_right(model)
    train(model, make)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["sgd foreach", "adamw foreach", "adamw fused"])
def test_after_a_compiled_step(name, backend):
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        model = net(hra(r=4))
        assert_right(model)
        train(model, OPTIMIZERS[name], steps=4, compiled=backend)


@pytest.mark.parametrize("name", ["adamw foreach", "adamw fused"])
def test_after_a_step_that_was_compiled_before_the_layer_was_called(name):
    torch._dynamo.reset()
    model = net(oft(b=16))
    optimizer = OPTIMIZERS[name](ac.adapter_parameters(model))
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(3):
        for p in ac.adapter_parameters(model):
            p.grad = torch.randn_like(p)
        step()
    assert_right(model)
    for _ in range(2):
        step()
        assert_right(model)


def replace_data(p):
    p.data = p.data + 0.1


def replace_data_twice(p):
    p.data = p.data + 0.1
    p.data = torch.randn_like(p)


def copy_in_inference_mode(p):
    with torch.inference_mode():
        p.copy_(p + 0.1)


def fill_an_entry(p):
    with torch.no_grad():
        p.flatten()[0] = 3.0
        p.view(-1)[-1].fill_(2.0)


def resize(p):
    with torch.no_grad():
        p.set_(torch.randn_like(p))


EDITS = (replace_data, replace_data_twice, copy_in_inference_mode, add_in_no_grad, fill_an_entry, resize)


@every
@pytest.mark.parametrize("edit", EDITS)
def test_after_an_edit(adapter, edit):
    model = net(adapter)
    assert_right(model)
    for p in (*ac.adapter_parameters(model), model[0].weight, model[0].bias):
        edit(p)
        assert_right(model)


@every
def test_after_memory_was_used_again(adapter):
    """Old tensors are freed, and new ones of the size allocated, until one would lie where an old one did."""
    model = net(adapter)
    assert_right(model)
    with torch.no_grad():
        for p in (*ac.adapter_parameters(model), model[0].weight):
            for _ in range(10):
                values = p + 0.1
                p.data = torch.empty(0, dtype=p.dtype)
                p.data = values.clone()
                del values
            assert_right(model)


@every
def test_after_a_parameter_was_replaced(adapter):
    model = net(adapter)
    assert_right(model)
    layer = model[0]
    for holder in (layer._leaves("default")._parameters, layer._parameters):
        for name in holder:
            holder[name] = nn.Parameter(holder[name].detach() + 0.1, requires_grad=False)
            assert_right(model)
    layer.weight = nn.Parameter(torch.randn(N, K, dtype=torch.float64))
    assert_right(model)
    new = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    twin = copy.deepcopy(layer)
    twin.load_state_dict(new, strict=False)
    x = rows()
    with torch.no_grad():
        torch.testing.assert_close(torch.func.functional_call(layer, new, x), twin(x))
        torch.testing.assert_close(torch.func.functional_call(layer, {**new}, x), twin(x))
    assert_right(model)


@every
def test_after_parameters_came_from_a_vector(adapter):
    model = net(adapter)
    for _ in range(3):
        vector = parameters_to_vector(ac.adapter_parameters(model)).detach()
        vector_to_parameters(vector + 0.1, ac.adapter_parameters(model))
        assert_right(model)


@every
@pytest.mark.parametrize("assign", [False, True])
def test_after_loading(adapter, assign, tmp_path):
    model, other = net(adapter, layers=2), net(adapter, layers=2)
    assert_right(model)
    ac.save(other, tmp_path)
    ac.load(model, tmp_path)
    assert_right(model)
    shift(other)
    model.load_state_dict(other.state_dict(), assign=assign)
    assert_right(model)
    leaves = {name: t + 0.1 for name, t in other.state_dict().items() if "adapters" in name and t.is_floating_point()}
    model.load_state_dict(leaves, strict=False, assign=assign)
    assert_right(model)


@every
def test_after_a_change_of_dtype(adapter):
    model = net(adapter)
    for dtype in (torch.float64, torch.float32, torch.float64):
        model.to(dtype)
        shift(model)
        assert_right(model)


@every
def test_after_changes_of_what_is_active(adapter):
    model = net(adapter)
    ac.inject(model, lora(r=2), "all-linear", name="second")
    shift(model)
    for names in (["default"], ["second"], ["default", "second"], ["second", "default"], ["default"]):
        ac.set_active(model, names)
        assert_right(model)
    ac.merge(model)
    with torch.no_grad():
        merged = model(x := rows())
    torch.testing.assert_close(merged, x @ model[0].adapted_weight().T + model[0].bias, rtol=0, atol=1e-10)
    ac.unmerge(model)
    assert_right(model)
    ac.reset(model)
    assert_right(model)
    ac.unload(model)
    assert not any(isinstance(m, AdaptedLinear) for m in model)


@every_held
def test_an_edit_that_torch_does_not_count_needs_refresh(adapter):
    model = net(adapter)
    assert_right(model)
    for p in (*ac.adapter_parameters(model), model[0].weight):
        p.data.add_(0.1)
        ac.refresh(model)
        assert_right(model)
