"""A block of three layers fed one x, with and without fusion, and what both must agree on."""

from __future__ import annotations

import copy

import torch
from methods_small import Dense, close, move
from torch import nn

import adaptc as ac
from adaptc.methods import lora

K, N, M = 48, 40, 300  # so many tokens that they are planned as 1,024 are


class Block(nn.Module):
    """Query, key and value; the key and value of another tensor if there is one."""

    def __init__(self, n=(N, N, N), k=K, dtype=torch.float64, bias=True):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(k, each, bias, dtype=dtype) for each in n)

    def forward(self, x, other=None):
        other = x if other is None else other
        return self.q(x), self.k(other), self.v(other)


def fused(adapter=None, block=None, warm=True, **options):
    """A block whose layers go together, trained somewhere, and called once with what shows it."""
    block = ac.inject(block or Block(), adapter or lora(r=4), ["q", "k", "v"], fuse_siblings=True, **options)
    move(block)
    if warm:
        with torch.no_grad():
            block.eval()(torch.randn(M, block.q.in_features, dtype=block.q.weight.dtype))
    return block.train()


def alone(block):
    """A copy whose layers go alone."""
    other = copy.deepcopy(block)
    assert ac.fuse_siblings(other, False) == []
    return other


def rows(m=M, k=K, dtype=torch.float64):
    """Tokens that want a gradient."""
    return torch.randn(m, k, dtype=dtype, requires_grad=True)


def fresh(x):
    """The same values, with a gradient of their own."""
    return x.detach().clone().requires_grad_()


def groups(block):
    """Which layers were last computed with others, as the summary tells."""
    return {r["layer"]: r["siblings"] for r in ac.summary(block).to_dict()["layers"]}


def went_together(block, *names):
    """Were these, and no others, computed as one?"""
    names = names or ("q", "k", "v")
    return {n for n, others in groups(block).items() if others} == set(names)


def stepped(model, x, call=None, seed=3):
    """y and all gradients of one step, `None` where there is none."""
    for p in model.parameters():
        p.grad = None
    ys = model(x) if call is None else call(x)
    generator = torch.Generator().manual_seed(seed)
    gys = [torch.randn(y.shape, dtype=torch.float64, generator=generator).to(y.dtype) for y in ys]
    torch.autograd.backward(ys, gys)
    return [*ys, x.grad, *(p.grad for p in model.parameters())]


def agree(got, want):
    """Two steps are the same but for rounding in float64."""
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b, terms=b.norm().item())


def by_definition(block, x, dtype=torch.float64):
    """A step by the dense definition of every layer, in the order of `stepped`. dtype: of gy."""
    x, layers = fresh(x), (block.q, block.k, block.v)
    dense = [Dense.of(layer) for layer in layers]
    ys = [d(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1) for d in dense]
    generator = torch.Generator().manual_seed(3)
    gys = [torch.randn(y.shape, dtype=torch.float64, generator=generator).to(dtype).double() for y in ys]
    torch.autograd.backward(ys, gys)
    found = {}
    for layer, d in zip(layers, dense, strict=True):
        for name, p in layer.named_parameters():
            g = d.tensors[name].grad
            found[id(p)] = g if id(p) not in found or g is None else found[id(p)] + g
    return [*ys, x.grad, *(found[id(p)] for p in block.parameters())]
