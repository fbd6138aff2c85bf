"""Models to save and load, compared bit for bit."""

from __future__ import annotations

import json

import torch
from methods_small import K, N, move
from torch import nn

import adaptc as ac

TENSORS, DESCRIPTION = "adapter.safetensors", "adapter.json"


def plain_model(dtype=torch.float32):
    """The same weights in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(K, N), nn.Tanh(), nn.Linear(N, K)).to(dtype)


def trained_model(adapter, dtype=torch.float32):
    """A model with a trained adapter on both layers."""
    model = ac.inject(plain_model(dtype), adapter, "all-linear")
    move(model)
    return model


def bits(model):
    """Every tensor and flag of a model, and the kind of every module."""
    kinds = [(name, type(m), m.training) for name, m in model.named_modules()]
    tensors = {n: (t.clone(), t.requires_grad) for n, t in model.state_dict(keep_vars=True).items()}
    return kinds, tensors


def same(a, b):
    """Are two models equal bit for bit?"""
    return a[0] == b[0] and all(
        torch.equal(t, b[1][name][0]) and t.dtype == b[1][name][0].dtype and flag == b[1][name][1]
        for name, (t, flag) in a[1].items()
    )


def rewrite_description(folder, change):
    """Change the description in place."""
    path = folder / DESCRIPTION
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))
