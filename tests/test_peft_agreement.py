"""PEFT 0.21.2 computes the same y and the same gradients from the same leaves.

Every trainable tensor of PEFT's layer is drawn anew, then copied into the leaf of the same meaning. C3A and FourierFT
compute in float32 inside PEFT, PiSSA, OLoRA and KaSA are attached in float32: those agree to float32, the others to
float64.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, field

import peft
import pytest
import torch
from methods_small import Dense, distance
from peft.tuners.boft import layer as boft_layer
from torch import Tensor, nn

import adaptc as ac
from adaptc.methods import catalogue

ATTACHED = {"pissa", "olora", "kasa"}
SINGLE = {"c3a", "fourierft", *ATTACHED}
SHAPES = [(24, 16), (12, 48)]
TARGET = {"target_modules": ["lin"]}


@dataclass(frozen=True)
class Peer:
    """A PEFT configuration and where its tensors are. paths: leaf -> attribute path in PEFT's layer.

    frozen: must be drawn alike. copied: frozen and drawn otherwise.
    """

    config: peft.PeftConfig
    hyper: dict
    paths: dict[str, str]
    spread: float = 0.5
    frozen: dict[str, str] = field(default_factory=dict)
    copied: dict[str, str] = field(default_factory=dict)


def low_rank(**options):
    """LoRA and its relatives."""
    config = peft.LoraConfig(r=4, lora_alpha=6, **options, **TARGET)
    return Peer(config, {"r": 4, "alpha": 6.0}, {"A": "lora_A.default.weight", "B": "lora_B.default.weight"})


def dora():
    peer = low_rank(use_dora=True)
    return Peer(peer.config, peer.hyper, {**peer.paths, "m": "lora_magnitude_vector.default.weight"})


def kasa():
    peer = low_rank(kasa_config=peft.KasaConfig())
    return Peer(peer.config, peer.hyper, {**peer.paths, "d": "lora_diag.default"})


def adalora():
    config = peft.AdaLoraConfig(init_r=4, lora_alpha=6, total_step=10, **TARGET)
    paths = {"A": "lora_A.default", "B": "lora_B.default", "e": "lora_E.default"}
    return Peer(config, {"r": 4, "alpha": 6.0}, paths)


def randlora():
    config = peft.RandLoraConfig(r=5, randlora_alpha=8, **TARGET)
    paths = {"l": "randlora_lambda.default", "g": "randlora_gamma.default"}
    copied = {"A": "randlora_A.default", "B": "randlora_B.default"}
    return Peer(config, {"r": 5, "alpha": 8.0}, paths, copied=copied)


def vera():
    config = peft.VeraConfig(r=5, projection_prng_key=3, **TARGET)
    frozen = {"A": "vera_A.default", "B": "vera_B.default"}
    return Peer(
        config, {"r": 5, "seed": 3}, {"d": "vera_lambda_d.default", "b": "vera_lambda_b.default"}, frozen=frozen
    )


def loha():
    paths = {"B1": "hada_w1_a", "A1": "hada_w1_b", "B2": "hada_w2_a", "A2": "hada_w2_b"}
    config = peft.LoHaConfig(r=4, alpha=6, **TARGET)
    return Peer(config, {"r": 4, "alpha": 6.0}, {leaf: f"{path}.default" for leaf, path in paths.items()})


def lokr(r):
    parts = ("w1", "w2_a", "w2_b") if r == 2 else ("w1", "w2")
    config = peft.LoKrConfig(r=r, alpha=5, **TARGET)
    return Peer(config, {"r": r, "alpha": 5.0}, {leaf: f"lokr_{leaf}.default" for leaf in parts})


def fourierft():
    config = peft.FourierFTConfig(n_frequency=20, scaling=150.0, random_loc_seed=777, **TARGET)
    return Peer(config, {"m": 20, "alpha": 150.0, "seed": 777}, {"c": "fourierft_spectrum.default"}, 3.0)


def oft():
    config = peft.OFTConfig(oft_block_size=8, use_cayley_neumann=False, **TARGET)
    return Peer(config, {"b": 8}, {"v": "oft_R.default.weight"}, 0.3)


def boft(stages, block):
    config = peft.BOFTConfig(boft_block_size=block, boft_n_butterfly_factor=stages, **TARGET)
    return Peer(config, {"b": block, "stages": stages}, {"X": "boft_R.default", "c": "boft_s.default"})


def shira():
    config = peft.ShiraConfig(r=2, random_seed=5, **TARGET)
    return Peer(config, {"r": 2, "seed": 5}, {"v": "shira_weight.default"})


def road():
    config = peft.RoadConfig(variant="road_1", group_size=6, **TARGET)
    return Peer(config, {"g": 6}, {"theta": "road_theta.default", "a": "road_alpha.default"}, 1.0)


PEERS = {
    "lora": low_rank,
    "pissa": lambda: low_rank(init_lora_weights="pissa"),
    "olora": lambda: low_rank(init_lora_weights="olora"),
    "kasa": kasa,
    "adalora": adalora,
    "randlora": randlora,
    "dora": dora,
    "vera": vera,
    "loha": loha,
    "lokr": lambda: lokr(2),
    "lokr of full rank": lambda: lokr(64),
    "c3a": lambda: Peer(peft.C3AConfig(block_size=4, **TARGET), {"b": 4}, {"c": "c3a_kernel.default"}, 5.0),
    "fourierft": fourierft,
    "oft": oft,
    "boft of one stage": lambda: boft(1, 8),
    "boft of three stages": lambda: boft(3, 4),
    "hra": lambda: Peer(peft.HRAConfig(r=4, **TARGET), {"r": 4}, {"U": "hra_u.default"}, 1.0),
    "hira": lambda: Peer(peft.HiraConfig(r=4, **TARGET), {"r": 4}, {"A": "hira_A.default", "B": "hira_B.default"}),
    "miss": lambda: Peer(peft.MissConfig(r=5, **TARGET), {"r": 5}, {"D": "miss_block.default"}),
    "beft": lambda: Peer(peft.BeftConfig(**TARGET), {}, {"c": "beft_bias.default"}),
    "shira": shira,
    "ia3": lambda: Peer(peft.IA3Config(feedforward_modules=[], **TARGET), {}, {"l": "ia3_l.default"}),
    "road": road,
}


class Net(nn.Module):
    """One linear layer by name."""

    def __init__(self, n: int, k: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.lin = nn.Linear(k, n, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x)


@pytest.fixture(autouse=True)
def stages(monkeypatch):
    """Without its CUDA extension PEFT uses one stage of BOFT whatever it is told: give it one in torch."""

    def forward(blocks):
        return [torch.stack([torch.block_diag(*stage) for stage in blocks])]

    def backward(g, blocks):
        h = blocks.shape[-1]
        cuts = [slice(i * h, (i + 1) * h) for i in range(blocks.shape[1])]
        return [torch.stack([g[:, cut, cut] for cut in cuts], dim=1)]

    extension = types.SimpleNamespace(forward=forward, backward=backward)
    monkeypatch.setattr(boft_layer, "_FBD_CUDA", extension)


def tensor(layer: nn.Module, path: str) -> Tensor:
    """`lora_A.default.weight`, through modules and dictionaries of parameters or buffers."""
    at = layer
    for name in path.split("."):
        at = at[name] if hasattr(at, "keys") else getattr(at, name)
    return at


@torch.no_grad()
def pair(title: str, n: int, k: int) -> tuple[Peer, nn.Module, ac.AdaptedLinear]:
    """PEFT's layer with moved parameters, and ours with the same base and leaves."""
    name, peer = title.split(" ")[0], PEERS[title]()
    torch.manual_seed(0)
    net = Net(n, k, torch.float32 if name in ATTACHED else torch.float64)
    ours = nn.Linear(k, n, dtype=torch.float64)
    ours.load_state_dict(net.lin.state_dict())
    model = peft.get_peft_model(net, peer.config)
    theirs = model.double().base_model.model.lin
    layer = ac.AdaptedLinear(ours.requires_grad_(False), catalogue()[name](**peer.hyper))
    leaves = layer.leaves()
    if name in {"pissa", "olora"}:  # they subtract their own start, whose signs are LAPACK's
        for leaf, path in peer.paths.items():
            leaves[f"{leaf}_initial"].copy_(tensor(theirs, path))
    for leaf, path in peer.paths.items():
        value = tensor(theirs, path)
        value.add_(peer.spread * torch.randn(value.shape))
        leaves[leaf].copy_(value.reshape(leaves[leaf].shape))
    places(name, theirs, leaves, k)
    for leaf, path in peer.copied.items():
        value = tensor(theirs, path)
        if leaf == "B":  # PEFT's product runs over (term, rank) in B and over (rank, term) in A
            value = value.reshape(len(value), value.shape[2], value.shape[1]).mT
        leaves[leaf].copy_(value.reshape(leaves[leaf].shape))
    for leaf, path in peer.frozen.items():
        assert torch.equal(leaves[leaf], tensor(theirs, path)), f"{leaf} is drawn otherwise"
    return peer, theirs.eval(), layer


def places(name: str, theirs: nn.Module, leaves: dict[str, Tensor], k: int) -> None:
    """The same places from the same seed; PEFT's SHiRA stores its values sorted by place."""
    if "at" not in leaves:
        return
    rows, cols = tensor(theirs, {"shira": "shira_indices.default"}.get(name, "indices.default")).long()
    at = rows * k + cols
    mine = leaves["at"].sort().values if name == "shira" else leaves["at"]
    assert torch.equal(mine, at)
    leaves["at"].copy_(at)


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("title", PEERS)
def test_the_same_leaves_give_the_same_numbers(title, n, k):
    peer, theirs, layer = pair(title, n, k)
    name, bound = title.split(" ")[0], 1e-10
    if name in SINGLE:
        bound = 8 * torch.finfo(torch.float32).eps
    x = torch.randn(7, k, dtype=torch.float64, requires_grad=True)
    gy = torch.randn(7, n, dtype=torch.float64)
    their_leaves = [tensor(theirs, path) for path in peer.paths.values()]
    our_leaves = [layer.leaves()[leaf] for leaf in peer.paths]
    y, want = layer(x), theirs(x)
    assert distance(y, want) < bound
    gx, *found = torch.autograd.grad(y, [x, *our_leaves], gy)
    their_gx, *expected = torch.autograd.grad(want, [x, *their_leaves], gy)
    for leaf, g, e in zip(peer.paths, found, expected, strict=True):
        assert distance(g, e.reshape(g.shape)) < bound, f"gradient of {leaf}"
    if name == "c3a":  # PEFT's backward applies another matrix than its forward
        rows = x.detach().clone().requires_grad_()
        assert distance(their_gx, gx) > 0.1
        (their_gx,) = torch.autograd.grad(Dense.of(layer)(rows), rows, gy)
        bound = 1e-10
    assert distance(gx, their_gx) < bound, "gradient of x"


@pytest.mark.parametrize("title", PEERS)
def test_the_same_weight_is_merged(title):
    _, theirs, layer = pair(title, *SHAPES[0])
    theirs.merge()
    bound = 8 * torch.finfo(torch.float32).eps if title in SINGLE else 1e-10
    base = theirs.get_base_layer()
    assert distance(layer.adapted_weight(), base.weight) < bound
    assert distance(layer.adapted_bias(), base.bias) < bound
