"""A method that adaptc does not know, with an operator of its own, in one file outside the package.

python shear.py FOLDER train | load
"""

import sys
from pathlib import Path

import torch
from torch import nn

import adaptc as ac
from adaptc.ir.build import add, contract, eye, put, take
from adaptc.ir.prims import INDEX


class Shear(ac.AbstractOperator):
    """The identity plus v on the first upper diagonal: v (k - 1,) -> (k, k)."""

    v: ac.ir.expr.Expr

    def as_matrix(self):
        k = self.v.dims[0] + 1
        return add(eye(k), put(self.v, (INDEX[0], INDEX[0] + 1), (k, k)))

    def apply(self, x):
        m, k = x.dims
        rest = take(x, (INDEX[0], INDEX[1] + 1), (m, k - 1))
        return add(x, put(contract("mk,k->mk", rest, self.v), INDEX[:2], (m, k)))

    @staticmethod
    def definition(xp, v):
        k = v.shape[0] + 1
        return xp.eye(k, dtype=v.dtype) + xp.diag_embed(v, 1)

    @classmethod
    def sample(cls, rows, cols, make, rng):
        return cls(make(rows - 1)) if rows == cols > 1 else None


@ac.adapter
def sheared(W, bias, *, s=1.0):
    """W' = W Shear(v) diag(d), bias' = bias + b: of no paper."""
    n, k = W.shape
    v, d = ac.param("v", (k - 1,), "zeros"), ac.param("d", (k,), "ones")
    return W @ ac.shear(s * v) @ ac.diag(d), bias + ac.param("b", (n,), "zeros")


def model():
    """The same in every process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4, bias=False)).double()


def reference(net, x):
    """What the trained model must compute."""
    for layer in net:
        if isinstance(layer, nn.Tanh):
            x = x.tanh()
            continue
        leaves = layer.leaves()
        S = torch.eye(layer.in_features, dtype=x.dtype) + torch.diag(0.5 * leaves["v"], 1)
        bias = leaves["b"] if layer.bias is None else layer.bias + leaves["b"]
        x = nn.functional.linear(x, layer.weight @ S * leaves["d"], bias)
    return x


def train(folder):
    """Train, compare with dense torch, merge, save."""
    net, x = model(), torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(5, 6)
    target = torch.linspace(1, -1, 20, dtype=torch.float64).reshape(5, 4)
    ac.inject(net, sheared(s=0.5), "all-linear")
    optimizer = torch.optim.AdamW(ac.adapter_parameters(net), lr=0.05)
    losses = []
    for _ in range(30):
        loss = (net(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    check_gradients(net, x)
    want = net(x).detach()
    ac.save(net, folder)
    torch.save(want, folder / "want.pt")
    before = {name: t.clone() for name, t in net.state_dict().items()}
    ac.merge(net)
    assert torch.allclose(net(x), want, rtol=1e-12, atol=1e-12)
    ac.unmerge(net)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def check_gradients(net, x):
    """y, the gradient of x and of every leaf against dense torch."""
    leaves = [x.requires_grad_(), *ac.adapter_parameters(net)]
    ours, want = net(x), reference(net, x)
    assert torch.allclose(ours, want, rtol=1e-12, atol=1e-12)
    pairs = (torch.autograd.grad(y.exp().sum(), leaves) for y in (ours, want))
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(*pairs, strict=True))


def load(folder):
    """In another process: the same numbers from the files."""
    net, x = model(), torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(5, 6)
    ac.load(net, folder)
    assert torch.equal(net(x), torch.load(folder / "want.pt"))


if __name__ == "__main__":
    assert ac.AbstractOperator.registry["shear"] is Shear
    {"train": train, "load": load, "verify": lambda _: ac.verify(sheared(s=0.5))}[sys.argv[2]](Path(sys.argv[1]))
    print("done")
