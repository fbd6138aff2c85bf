"""As test_peft_agreement.py, for methods whose tensors PEFT lays out otherwise, or whose frozen factors it rounds.

Frozen factors are copied too. DEFT and PSOFT compute or attach in float32, Uni-LoRA's divisors and OSF's factors are
float32: those agree to float32, the others to float64.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass

import peft
import pytest
import torch
from methods_small import distance
from peft.tuners.adamss import layer as adamss_layer
from test_peft_agreement import ATTACHED, PEERS, SHAPES, TARGET, Net, tensor
from torch import Tensor, nn

import adaptc as ac
from adaptc.methods import catalogue

SINGLE = 8 * torch.finfo(torch.float32).eps
BOUNDS = {"deft": SINGLE, "unilora": SINGLE, "osf": 1e-5}  # OSF: singular vectors from float32


@dataclass(frozen=True)
class Other:
    """A PEFT configuration. leaves: ours -> paths of theirs and how they are laid out in ours.

    fix: what is frozen, ours -> a function of their layer.
    """

    config: peft.PeftConfig
    hyper: dict
    leaves: dict[str, tuple[tuple[str, ...], Callable[..., Tensor]]]
    fix: dict[str, Callable[[nn.Module], Tensor]]
    spread: float = 0.5


def same(**paths: str) -> dict:
    """Leaves that differ at most by axes of one."""
    return {leaf: ((path,), lambda t: t) for leaf, path in paths.items()}


def lora_bd(side):
    bd = peft.tuners.lora.BdLoraConfig(**{f"target_modules_bd_{side.lower()}": ["lin"]}, nblocks=2)
    config = peft.LoraConfig(r=4, lora_alpha=6, use_bdlora=bd, **TARGET)
    leaves = same(A="lora_A.default.weight", B="lora_B.default.weight")
    return Other(config, {"r": 4, "alpha": 6.0, "blocks": 2, "diagonal": side}, leaves, {})


def delora():
    leaves = same(A="delora_A.default", B="delora_B.default", lam="delora_lambda.default")
    return Other(peft.DeloraConfig(r=4, delora_lambda=15, **TARGET), {"r": 4}, leaves, {})


def gralora():
    def A(t):  # (inputs, in, (outputs, rank)) -> (outputs, inputs, rank, in)
        return t.reshape(*t.shape[:2], 2, 2).permute(2, 0, 3, 1)

    def B(t):  # (outputs, (inputs, rank), out) -> (outputs, inputs, out, rank)
        return t.reshape(2, 2, 2, -1).transpose(2, 3)

    leaves = {"A": (("gralora_A.default",), A), "B": (("gralora_B.default",), B)}
    config = peft.GraloraConfig(r=4, alpha=6, gralora_k=2, **TARGET)
    return Other(config, {"r": 4, "k": 2, "alpha": 6.0}, leaves, {})


def deft(method):
    config = peft.DeftConfig(r=4, decomposition_method=method, alpha=6, **TARGET)
    return Other(
        config, {"r": 4, "alpha": 6.0, "decomposition": method}, same(P="deft_P.default", R="deft_R.default"), {}
    )


def glora():
    leaves = {f"{v}{ud}": f"glora_{v}.default.X{ud}" for v in "ABC" for ud in "ud"}
    leaves |= {v: f"glora_{v}.default.X" for v in "DE"}
    return Other(peft.GloraConfig(r=4, **TARGET), {"r": 4}, same(**leaves), {})


def miss_bat():
    config = peft.MissConfig(r=4, init_weights="bat", **TARGET)
    return Other(config, {"r": 4}, same(D="miss_block.default"), {})


def peanut():
    paths = {"A": "peanut_A.default.weight", "B": "peanut_B.default.weight"}
    paths |= {f"E{i}": f"peanut_encoders.default.{i}.weight" for i in range(2)}
    paths |= {f"D{i}": f"peanut_decoders.default.{i}.weight" for i in range(2)}
    config = peft.PeanutConfig(r=4, depth=2, scaling=0.5, **TARGET)
    return Other(config, {"r": 4, "depth": 2, "s": 0.5}, same(**paths), {})


def supertuning():
    leaves = {"v": (("supertuning_values.default", "supertuning_indices.default"), lambda v, at: v[at.argsort()])}
    return Other(peft.SupertuningConfig(sparsity=0.9, **TARGET), {"density": 1 - 0.9}, leaves, {})


def psoft():
    paths = {"q": "psoft_R.default.weight", "a": "psoft_R.default.vector_a", "b": "psoft_R.default.vector_b"}
    fix = {
        "attach_0": lambda theirs: theirs._psoft_B_cache["default"] * 1.5,
        "attach_1": lambda theirs: theirs._psoft_A_cache["default"],
    }
    return Other(peft.PsoftConfig(r=4, psoft_alpha=6, **TARGET), {"r": 4}, same(**paths), fix)


def vblora():
    config = peft.VBLoRAConfig(r=3, num_vectors=7, vector_length=4, topk=2, **TARGET)
    leaves = same(bank="vblora_vector_bank.default", LB="vblora_logits_B.default")
    leaves["LA"] = (("vblora_logits_A.default",), lambda t: t.transpose(0, 1))
    return Other(config, {"r": 3, "vectors": 7, "length": 4}, leaves, {}, 1.0)


def unilora():
    def frequent(*indices):  # the numbers, those that occur once more first, as ours count
        return torch.cat([i.flatten() for i in indices]).bincount(minlength=10).argsort(descending=True, stable=True)

    def at(theirs):
        indices = [getattr(theirs, f"unilora_indices_{v}")["default"] for v in "AB"]
        place = frequent(*indices).argsort()[torch.cat([i.flatten() for i in indices])]
        before = torch.stack([(place[:t] == p).sum() for t, p in enumerate(place)])
        return place + 10 * before

    paths = ("unilora_theta_d.default", "unilora_indices_A.default", "unilora_indices_B.default")
    leaves = {"z": (paths, lambda z, *indices: z[frequent(*indices)])}
    return Other(peft.UniLoraConfig(r=4, theta_d_length=10, **TARGET), {"d": 10}, leaves, {"at": at})


def tinylora():
    fix = {
        "attach_0": lambda theirs: theirs.tinylora_B["default"],
        "attach_1": lambda _: torch.ones(2, dtype=torch.float64),
        "attach_2": lambda theirs: theirs.tinylora_A["default"],
        "P": lambda theirs: theirs.tinylora_P["default"],
    }
    return Other(peft.TinyLoraConfig(r=2, u=5, **TARGET), {"u": 5}, same(v="tinylora_v.default.0"), fix)


def waveft():
    def at(theirs):  # rows and columns of the mixed bands change places
        n, k = theirs.get_base_layer().weight.shape
        row, col = theirs.waveft_indices["default"]
        p, q = row // (n // 2), col // (k // 2)
        return (q * (n // 2) + row % (n // 2)) * k + p * (k // 2) + col % (k // 2)

    config = peft.WaveFTConfig(n_frequency=40, scaling=3.0, **TARGET)
    return Other(config, {"n_frequency": 40, "alpha": 3.0}, same(c="waveft_spectrum.default"), {"at": at})


def osf():
    paths = {v: f"osf_svd_params.default.{v}_low" for v in "USV"}

    def start(theirs):  # the smaller of U diag(S) beside V and of their product
        US, V = theirs._osf_U_low_init["default"] * theirs._osf_S_low_init["default"], theirs._osf_V_low_init["default"]
        return US @ V if US.numel() + V.numel() > len(US) * V.shape[1] else US

    fix = {"attach_2": start, "V_initial": lambda theirs: theirs._osf_V_low_init["default"]}
    return Other(peft.OSFConfig(effective_rank=3, **TARGET), {"rank": 3}, same(**paths), fix)


def frod():
    fix = {
        "V": lambda theirs: theirs.frod_V["default"],
        "attach_0": lambda theirs: theirs.frod_U["default"],
    }
    leaves = same(l="frod_lambda_l.default", s="frod_lambda_s_values.default")
    return Other(peft.FrodConfig(sparse_rate=0.1, progressbar=False, **TARGET), {"sparse_rate": 0.1}, leaves, fix)


def adamss():
    def rows(*blocks):  # cluster c has the outputs c, c + 3, ...
        return torch.cat([torch.cat([b[i : i + 1] for b in blocks]) for i in range(len(blocks[0]))])

    leaves = {
        "A": (tuple(f"adamss_A.default.{c}" for c in range(3)), lambda *t: torch.cat(t)),
        "B": (tuple(f"adamss_B.default.{c}" for c in range(3)), rows),
    }
    fix = {
        "at": lambda theirs: torch.arange(theirs.out_features) % 3,
        "attach_0": lambda theirs: theirs.adamss_newB["default"],
    }
    config = peft.AdamssConfig(r=6, num_subspaces=3, subspace_rank=2, **TARGET)
    return Other(config, {"r": 6, "subspaces": 3, "rank": 2}, leaves, fix)


OTHERS = {
    "lora_bd": lambda: lora_bd("A"),
    "lora_bd of B": lambda: lora_bd("B"),
    "delora": delora,
    "gralora": gralora,
    "deft": lambda: deft("relu"),
    "glora": glora,
    "miss_bat": miss_bat,
    "peanut": peanut,
    "supertuning": supertuning,
    "psoft": psoft,
    "vblora": vblora,
    "unilora": unilora,
    "tinylora": tinylora,
    "waveft": waveft,
    "osf": osf,
    "frod": frod,
    "adamss": adamss,
}


@pytest.fixture(autouse=True)
def clusters(monkeypatch):
    """Scikit-learn's K-means is not needed: rows take turns."""
    monkeypatch.setitem(sys.modules, "sklearn", types.ModuleType("sklearn"))
    monkeypatch.setattr(adamss_layer, "clustering_Z", lambda rows, count, _: (torch.arange(len(rows)) % count, count))


def pair(title: str, n: int, k: int) -> tuple[Other, nn.Module, ac.AdaptedLinear]:
    """PEFT's layer with moved parameters, and ours with the same base and leaves."""
    name, other = title.split(" ")[0], OTHERS[title]()
    torch.manual_seed(0)
    net = Net(n, k, torch.float32 if name == "psoft" else torch.float64)
    if name == "adamss":
        net.lin.bias = None  # PEFT's bias is one more column of W
    ours = nn.Linear(k, n, bias=name != "adamss", dtype=torch.float64)
    ours.load_state_dict(net.lin.state_dict())
    theirs = peft.get_peft_model(net, other.config).double().base_model.model.lin
    layer = ac.AdaptedLinear(ours.requires_grad_(False), catalogue()[name](**other.hyper))
    leaves = layer.leaves()
    if name == "frod":
        rows, cols = theirs.frod_s_indices["default"]  # off the diagonal, row by row
        assert torch.equal(leaves["at"], rows * (k - 1) + cols - (cols > rows).long())
    with torch.no_grad():
        for leaf in leaves.keys() & other.fix.keys():
            leaves[leaf].copy_(other.fix[leaf](theirs))
        for leaf, (paths, lay) in other.leaves.items():
            for t in (t for p in paths if (t := tensor(theirs, p)).requires_grad):
                t.add_(other.spread * torch.randn(t.shape))
            leaves[leaf].copy_(lay(*(tensor(theirs, p) for p in paths)).reshape(leaves[leaf].shape))
    return other, theirs.eval(), layer


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("title", OTHERS)
def test_the_same_leaves_give_the_same_numbers(title, n, k):
    other, theirs, layer = pair(title, n, k)
    bound = BOUNDS.get(title.split(" ")[0], 1e-10)
    x = torch.randn(7, k, dtype=torch.float64, requires_grad=True)
    gy = torch.randn(7, n, dtype=torch.float64)
    y, want = layer(x), theirs(x)
    assert distance(y, want) < bound
    gx, *found = torch.autograd.grad(y, [x, *(layer.leaves()[leaf] for leaf in other.leaves)], gy)
    (their_gx,) = torch.autograd.grad(want, x, gy, retain_graph=True)
    assert distance(gx, their_gx) < bound, "gradient of x"
    for (leaf, (paths, lay)), g in zip(other.leaves.items(), found, strict=True):
        tensors = [tensor(theirs, p) for p in paths]
        moved = [t for t in tensors if t.requires_grad]
        grads = iter(torch.autograd.grad(want, moved, gy, retain_graph=True))
        e = lay(*(next(grads) if t.requires_grad else t for t in tensors))
        assert distance(g, e.reshape(g.shape)) < bound, f"gradient of {leaf}"


@pytest.mark.parametrize("title", OTHERS)
def test_the_same_weight_is_merged(title):
    _, theirs, layer = pair(title, *SHAPES[0])
    theirs.merge()
    bound = BOUNDS.get(title.split(" ")[0], 1e-10)
    base = theirs.get_base_layer()
    assert distance(layer.adapted_weight(), base.weight) < bound
    if base.bias is not None:
        assert distance(layer.adapted_bias(), base.bias) < bound


def test_every_weight_form_of_the_catalogue_that_peft_has_is_compared():
    compared = {title.split(" ")[0] for title in (*PEERS, *OTHERS)}
    forms = {name for name, m in catalogue().items() if not m().trace(4096, 4096).is_output_form}
    known = {t.value.lower() for t in peft.PeftType} | {"dora", "lora_bd", "miss_bat", *ATTACHED}
    assert forms & known <= compared
