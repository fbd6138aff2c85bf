"""Layers that are fed one tensor, where something changes between their calls or looks into them."""

import copy
import io
import itertools
import pickle
import random
import threading
import weakref

import pytest
import torch
from methods_small import close
from siblings_small import (
    Block,
    K,
    M,
    agree,
    alone,
    by_definition,
    fresh,
    fused,
    groups,
    rows,
    stepped,
    went_together,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

import adaptc as ac
from adaptc.errors import UnsupportedError
from adaptc.methods import dora, lora, vera

pytestmark = pytest.mark.usefixtures("at_any_price")


def pending(block):
    """Bytes that layers hold for siblings."""
    return ac.summary(block).held_bytes


# --------------------------------------------------------------------------- who is fed what


def test_the_key_and_value_of_another_tensor():
    block, x, other = fused(warm=False), rows(), rows()
    for _ in range(2):
        twin = alone(block)
        want = stepped(twin, fresh(x), lambda t, twin=twin: twin(t, other))
        agree(stepped(block, fresh(x), lambda t: block(t, other)), want)
    want = alone(block)(x, other)
    for y, w in zip(block(x, other), want, strict=True):
        close(y, w)
    assert went_together(block, "k", "v")


def test_when_the_pattern_changes_it_is_learned_anew():
    block, x, other = fused(), rows(), rows()
    both, apart = (x,), (x, other)
    for call, names in [(both, "qkv"), (apart, None), (apart, "kv"), (apart, "kv"), (both, None), (both, "qkv")]:
        for y, w in zip(block(*call), alone(block)(*call), strict=True):
            close(y, w)
        assert names is None or went_together(block, *names)


@pytest.mark.parametrize("seed", range(12))
def test_calls_in_any_order_of_any_x_with_edits_between(seed):
    """Layers in any order, twice or never, with and without gradients, while leaves, flags and modes change."""
    choose, block = random.Random(seed), fused((lora(r=4), dora(r=4), vera(r=4))[seed % 3])
    models = block, alone(block)
    twins, made = [(x, fresh(x)) for x in (rows(), rows())], []
    for _ in range(40):
        at, name = choose.choice(twins), choose.choice("qqkkvv")
        if choose.random() < 0.15:
            differentiated(made, models)  # an edit would be seen by what is not
            edit(choose, models, name)
        with torch.set_grad_enabled(choose.random() < 0.6):
            found = [model.get_submodule(name)(x) for model, x in zip(models, at, strict=True)]
        close(*found)
        if found[0].requires_grad and choose.random() < 0.5:
            made.append(found)
    differentiated(made, models)


def differentiated(made, models):
    """Gradients of all that was made are the same on both sides; nothing is left."""
    for ys, model in zip(zip(*made, strict=True), models, strict=False):
        model.zero_grad()
        torch.autograd.backward([y.sum() for y in ys])
    made.clear()
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            close(p.grad, q.grad, terms=q.grad.norm().item())


def edit(choose, models, name):
    """The same change on both sides."""
    kind = choose.choice(["mode", "flag", "data", "new"])
    for model in models:
        layer = model.get_submodule(name)
        leaf, p = next(iter(layer.adapters["default"]._parameters.items()))
        match kind:
            case "mode":
                layer.train(not layer.training)
            case "flag":
                p.requires_grad_(not p.requires_grad)
            case "data":
                p.data = p.data * 1.5
            case "new":
                layer.adapters["default"]._parameters[leaf] = nn.Parameter(p.detach() * 0.5)


# --------------------------------------------------------------------------- x


def test_x_edited_in_place():
    block, x = fused(), rows().detach()
    with torch.no_grad():
        block.q(x)
        assert pending(block)
        x.mul_(2)
        close(block.k(x), alone(block).k(x))
        x.detach().add_(1)  # an alias
        close(block.v(x), alone(block).v(x))


def test_another_x_at_the_same_address():
    block, memory = fused(), torch.randn(M, K, dtype=torch.float64).numpy()
    other = alone(block)
    for _ in range(5):
        x = torch.from_numpy(memory)
        with torch.no_grad():
            block.q(x)
            del x
            assert not pending(block)
            memory += 1
            x = torch.from_numpy(memory)
            close(block.k(x), other.k(x))


@pytest.mark.parametrize("grad", [True, False])
def test_nothing_outlives_the_calls(grad):
    block, x = fused(), rows()
    with torch.set_grad_enabled(grad):
        ys = block(x)
        assert went_together(block)
        assert not pending(block)
        ref = weakref.ref(x)
        del ys, x
        assert ref() is None
        x = rows()
        ref = weakref.ref(x)
        y = block.q(x).sum()
        assert pending(block) == 2 * M * 4 * 8  # P of k and v
        del y, x
    assert not pending(block)
    assert ref() is None


def test_views_and_copies_of_x_go_the_ordinary_way():
    block, x = fused(), rows()
    with torch.no_grad():
        block.q(x)
        for other in (x.view_as(x), x.clone(), x[:], x.T.contiguous().T):
            close(block.k(other), alone(block).k(other))
        assert pending(block)


# --------------------------------------------------------------------------- parameters and states

EDITS = {
    "in place": lambda layer: torch.no_grad()(layer.leaves()["A"].add_)(1),
    "data": lambda layer: setattr(layer.leaves()["A"], "data", layer.leaves()["A"].data + 1),
    "replaced": lambda layer: replaced(layer, layer.leaves()["A"].data + 1),
    "same memory": lambda layer: replaced(layer, layer.leaves()["A"].data),
    "frozen": lambda layer: layer.leaves()["A"].requires_grad_(False),
    "trained": lambda layer: layer.leaves()["A"].requires_grad_(True),
    "optimizer": lambda layer: optimized(layer, fused=False),
    "fused optimizer": lambda layer: optimized(layer, fused=True),
    "disabled": lambda layer: setattr(layer, "disabled", 1),
    "inactive": lambda layer: setattr(layer, "active", ()),
    "merged": lambda layer: layer.merge(),
    "another": lambda layer: ac.inject(nn.ModuleList([layer]), lora(r=2), ["0"], name="more"),
    "loaded": lambda layer: layer.load_state_dict({n: t + 1 for n, t in layer.state_dict().items()}),
    "base weight": lambda layer: torch.no_grad()(layer.weight.add_)(1),
}


def replaced(layer, value):
    """Another parameter for a leaf."""
    layer.adapters["default"].A = nn.Parameter(value)


def optimized(layer, **options):
    """A step of an optimizer that counts no versions where it is fused."""
    p = layer.leaves()["A"]
    p.grad = torch.ones_like(p)
    torch.optim.AdamW([p], lr=0.1, **options).step()


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", EDITS)
def test_a_sibling_edited_between_the_calls(name, grad):
    block, x = fused(), rows()
    block.k.leaves()["A"].requires_grad_(name != "trained")
    with torch.set_grad_enabled(grad):
        first = block.q(x)
        assert pending(block)
        EDITS[name](block.k)
        got, other = block.k(x), alone(block)
        want = other.k(z := fresh(x))
        close(got, want)
        close(block.v(x), other.v(z))
        close(first, other.q(z))
        assert got.requires_grad == want.requires_grad
    if grad and name in ("same memory", "replaced", "frozen", "trained"):
        for y, model in ((got, block), (want, other)):
            model.zero_grad()
            y.square().sum().backward()
        for p, q in zip(block.k.adapters.parameters(), other.k.adapters.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            assert p.grad is None or close(p.grad, q.grad) is None


def test_training_with_optimizers():
    for make in (torch.optim.SGD, torch.optim.AdamW, lambda ps, lr: torch.optim.AdamW(ps, lr=lr, fused=True)):
        block = fused(warm=False)
        other, x = alone(block), rows().detach()
        for model in (block, other):
            optimizer = make(ac.adapter_parameters(model), lr=1e-3)
            for _ in range(4):
                optimizer.zero_grad()
                sum(y.square().mean() for y in model(x)).backward()
                optimizer.step()
        assert went_together(block)
        for p, q in zip(block.parameters(), other.parameters(), strict=True):
            close(p, q)


def test_states_of_the_model():
    block, x = fused(), rows()
    other = alone(block)
    with torch.no_grad():
        with ac.disabled(block), ac.disabled(other):
            assert all(map(torch.equal, block(x), other(x)))
        ac.merge(block)
        ac.merge(other)
        assert all(map(torch.equal, block(x), other(x)))
        ac.unmerge(block)
        ac.unmerge(other)
        for y, w in zip(block(x), other(x), strict=True):
            close(y, w)
        assert went_together(block)
        block.q(x)
        ac.refresh(block)
        assert not pending(block)
    assert [type(m) for m in ac.unload(block).children()] == [nn.Linear] * 3


def test_refresh_after_an_edit_that_torch_does_not_count():
    block, x = fused(), rows()
    with torch.no_grad():
        block.q(x)
        block.k.leaves()["A"].data.add_(1)
        ac.refresh(block)
        close(block.k(x), alone(block).k(x))


def test_dropout_in_training_goes_the_ordinary_way():
    block, x = fused(dropout=0.5), rows()
    other = alone(block)
    for model in (block, block, other):
        torch.manual_seed(5)
        ys = model(x)
    torch.manual_seed(5)
    assert all(map(torch.equal, block(x), ys))
    assert not any(groups(block).values())
    block.eval()(x)
    block(x)
    assert went_together(block)
    for y, w in zip(block(x), other.eval()(x), strict=True):
        close(y, w)


# --------------------------------------------------------------------------- gradients


def test_what_no_loss_reaches_has_no_gradient():
    block, x = fused(), rows()
    block.zero_grad()
    q, _, v = block(x)
    (q.sum() + v.sum()).backward()
    assert went_together(block)
    got = {n: p.grad for n, p in block.named_parameters()}
    other = alone(block)
    other.zero_grad()
    z = fresh(x)
    (other.q(z).sum() + other.v(z).sum()).backward()
    for n, p in other.named_parameters():
        assert (p.grad is None) == (got[n] is None)
        assert p.grad is None or torch.allclose(p.grad, got[n], rtol=1e-10)
    close(x.grad, z.grad)


def test_each_layer_called_and_differentiated_by_itself():
    block, x = fused(), rows()
    block.zero_grad()
    ys = []
    for layer in (block.q, block.k, block.v):
        ys.append(layer(x))  # so that its graph is there when the next is called
        ys[-1].square().sum().backward()
    got = [x.grad, *(p.grad for p in block.parameters())]
    other, z = alone(block), fresh(x)
    other.zero_grad()
    sum(y.square().sum() for y in other(z)).backward()
    agree(got, [z.grad, *(p.grad for p in other.parameters())])


def test_losses_apart_with_retain_graph():
    block, x = fused(), rows()
    q, k, v = block(x)
    got = [torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in (q, k, v, q)]
    other, z = alone(block), fresh(x)
    for g, y in zip(got, [*other(z), other.q(z)], strict=True):
        close(g, torch.autograd.grad(y.sum(), z)[0])


def test_a_backward_under_autocast_has_the_bits_of_one_without():
    block, x = fused(block=Block(dtype=torch.float32)), rows(dtype=torch.float32)
    want, ys = stepped(block, fresh(x)), block(x)
    assert went_together(block)
    block.zero_grad()
    generator = torch.Generator().manual_seed(3)
    gys = [torch.randn(y.shape, dtype=torch.float64, generator=generator).float() for y in ys]
    with torch.autocast("cpu", torch.bfloat16):
        torch.autograd.backward(ys, gys)
    got = [*ys, x.grad, *(p.grad for p in block.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True) if b is not None)


def test_a_second_derivative_raises():
    block, x = fused(), rows()
    (g,) = torch.autograd.grad(sum(y.square().sum() for y in block(x)), x, create_graph=True)
    with pytest.raises(UnsupportedError, match="second derivatives"):
        g.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    """Steps are those without it, whether the layers have met or not; in one step nothing changes."""
    block = fused(warm=False)
    other, x = alone(block), rows()
    optimizers = [torch.optim.SGD(ac.adapter_parameters(m), lr=1e-3) for m in (block, other)]
    for step in range(3):
        z = fresh(x)
        got = stepped(block, x_ := fresh(x), lambda t: checkpoint(block, t, use_reentrant=reentrant))
        assert went_together(block) == (step > 0) or step == 0
        agree(got, stepped(other, z))
        if step:
            assert all(torch.equal(a, b) for a, b in zip(got, stepped(block, fresh(x)), strict=True) if a is not None)
        assert x_.grad is not None
        for optimizer in optimizers:
            optimizer.step()
    assert went_together(block)


def test_what_is_learned_between_a_checkpoint_and_its_backward_waits():
    block, x = fused(warm=False), rows()
    first = checkpoint(block, x, use_reentrant=False)
    for _ in range(3):
        block(rows())
    sum(y.sum() for y in first).backward()
    got = x.grad.clone()
    other, z = alone(block), fresh(x)
    sum(y.sum() for y in other(z)).backward()
    close(got, z.grad)


def test_each_layer_in_a_checkpoint_of_its_own():
    block, x = fused(), rows()
    layers = block.q, block.k, block.v
    got = stepped(block, x, lambda t: [checkpoint(layer, t, use_reentrant=False) for layer in layers])
    agree(got, by_definition(block, x))


# --------------------------------------------------------------------------- what looks into a call


def test_compiled_exported_and_transformed():
    block, x = fused(), rows()
    other = alone(block)
    torch._dynamo.reset()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    agree(stepped(block, x, compiled), stepped(other, fresh(x)))
    exported = torch.export.export(block, (x.detach(),))
    batch = torch.randn(2, M, K, dtype=torch.float64)
    mapped = torch.func.vmap(lambda t: block(t))(batch)
    gradient = torch.func.grad(lambda t: sum(y.sum() for y in block(t)))(x.detach())
    close(gradient, torch.func.grad(lambda t: sum(y.sum() for y in other(t)))(x.detach()))
    for y, w, m, u in zip(exported.module()(x), other(x), mapped, other(batch), strict=True):
        close(y, w)
        close(m, u)


def test_autocast_and_inference_mode():
    block, x = fused(block=Block(dtype=torch.float32)), rows(dtype=torch.float32)
    other = alone(block)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, block(x), other(x)))
    block.q(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block.k(x), other.k(x))
    with torch.inference_mode():
        block.q(x)
    assert block.k(x).requires_grad
    with torch.inference_mode():
        made = x + 1
        assert all(torch.equal(y, w) for y, w in zip(block(made), other(made), strict=True))


def test_hooks_of_layers():
    block, x = fused(), rows()
    block.k.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    block.v.register_forward_hook(lambda module, args, y: y + 1)
    other = alone(block)
    for _ in range(2):
        agree(stepped(block, fresh(x)), stepped(other, fresh(x)))


def test_threads():
    block, found = fused().eval(), {}
    xs = [torch.randn(M, K, dtype=torch.float64) for _ in range(4)]
    want = [[y.detach() for y in alone(block)(x)] for x in xs]

    def work(j):
        with torch.no_grad():
            found[j] = [block(xs[j]) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(j,)) for j in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for j, w in enumerate(want):
        for ys in found[j]:
            list(itertools.starmap(close, zip(ys, w, strict=True)))


# --------------------------------------------------------------------------- copies and files


def test_copies_start_anew_and_know_each_other():
    block, x = fused(), rows()
    with torch.no_grad():
        block.q(x)
    for twin in (pickle.loads(pickle.dumps(block)), copy.deepcopy(block)):
        assert twin.q.siblings is twin.v.siblings is not block.q.siblings
        assert not pending(twin)
        for _ in range(2):
            agree(stepped(twin, fresh(x)), stepped(alone(block), fresh(x)))
        assert went_together(twin)
    single = copy.deepcopy(block.q)
    close(single(x), alone(block).q(x))


def test_files_and_state_dicts_are_the_same(tmp_path):
    block = fused()
    block(rows())
    other = alone(block)
    ac.save(block, tmp_path / "ours")
    ac.save(other, tmp_path / "theirs")
    for name in ("adapter.json", "adapter.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    assert list(block.state_dict()) == list(other.state_dict())
    for p in ac.adapter_parameters(block):
        p.data.zero_()
    ac.load(block, tmp_path / "theirs")
    agree(stepped(block, x := rows()), stepped(other, fresh(x)))
    assert went_together(block)
    buffer = io.BytesIO()
    torch.save(block, buffer)
    buffer.seek(0)
    agree(stepped(torch.load(buffer, weights_only=False), fresh(x)), stepped(other, fresh(x)))
