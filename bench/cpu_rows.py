"""The rows of the CPU benchmark: every method with the hyper-parameters it is measured at, and its name elsewhere."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import adaptc as ac
from adaptc.methods import catalogue

Hyper = Mapping[str, Any]
BySize = Callable[[int, int], Hyper]


@dataclass(frozen=True)
class Row:
    """method and hyper: ours. config and options: PEFT's class and what it is given. lycoris: LyCORIS's class and what
    it is given, where it has the method. Hyper-parameters may depend on the sizes n and k."""

    method: str
    hyper: BySize
    config: str
    options: BySize
    lycoris: tuple[str, Hyper] | None = None

    def adapter(self, n: int, k: int) -> ac.Adapter:
        """Ours."""
        return catalogue()[self.method](**self.hyper(n, k))


def row(method: str, hyper: Hyper | BySize, config: str, options: Hyper | BySize, *lycoris: Any) -> Row:
    """A row; hyper-parameters that are the same for every size are given as they are."""

    def by_size(given: Hyper | BySize) -> BySize:
        return given if callable(given) else lambda n, k: given

    return Row(method, by_size(hyper), config, by_size(options), (lycoris[0], lycoris[1]) if lycoris else None)


def block(n: int, k: int, most: int = 256) -> int:
    """The largest common divisor of both sizes that is at most `most`."""
    both = math.gcd(n, k)
    return max(d for d in range(1, most + 1) if both % d == 0)


def vectors(n: int, k: int) -> Hyper:
    """VB-LoRA's: pieces of at most 256 entries."""
    return {"r": 4, "num_vectors": 256, "vector_length": block(n, k), "topk": 2}


FULL = 10_000  # a rank at which LoKr takes its second factor in full
BD = {"r": 16, "lora_alpha": 16, "use_bdlora": ("BdLoraConfig", {"target_modules_bd_a": ["lin"], "nblocks": 4})}
LOW, HIGH = {"lora_dim": 8, "alpha": 16}, {"lora_dim": 64, "alpha": 64}
LOKR8 = {"lora_dim": FULL, "alpha": FULL, "factor": 8}
ROWS: dict[str, Row] = {
    "lora": row("lora", {"r": 8, "alpha": 16.0}, "Lora", {"r": 8, "lora_alpha": 16}, "LoCon", LOW),
    "lora_r64": row("lora", {"r": 64, "alpha": 64.0}, "Lora", {"r": 64, "lora_alpha": 64}, "LoCon", HIGH),
    "dora": row("dora", {"r": 8, "alpha": 16.0}, "Lora", {"r": 8, "lora_alpha": 16, "use_dora": True},
                "LoCon", {**LOW, "weight_decompose": True}),
    "lora_kasa": row("kasa", {"r": 8, "alpha": 16.0}, "Lora",
                     {"r": 8, "lora_alpha": 16, "kasa_config": ("KasaConfig", {})}),
    "lora_bd": row("lora_bd", {"r": 16, "alpha": 16.0, "blocks": 4, "diagonal": "A"}, "Lora", BD),
    "adalora": row("adalora", {"r": 12, "alpha": 12.0}, "AdaLora", {"init_r": 12, "lora_alpha": 12, "total_step": 10}),
    "delora": row("delora", {"r": 8}, "Delora", {"r": 8, "delora_lambda": 15}),
    "vblora": row("vblora", lambda n, k: {"r": 4, "vectors": 256, "length": block(n, k), "topk": 2}, "VBLoRA", vectors),
    "unilora": row("unilora", {"r": 4, "d": 256}, "UniLora", {"r": 4, "theta_d_length": 256}),
    "vera": row("vera", {"r": 256}, "Vera", {"r": 256, "projection_prng_key": 0}),
    "randlora": row("randlora", {"r": 32, "alpha": 640.0}, "RandLora", {"r": 32}),
    "tinylora": row("tinylora", {"r": 2, "u": 64}, "TinyLora", {"r": 2, "u": 64}),
    "psoft": row("psoft", {"r": 32}, "Psoft", {"r": 32, "psoft_alpha": 32}),
    "fourierft": row("fourierft", {"m": 1000, "alpha": 150.0}, "FourierFT", {"n_frequency": 1000, "scaling": 150.0}),
    "waveft": row("waveft", {"n_frequency": 2592, "alpha": 25.0}, "WaveFT", {"n_frequency": 2592, "scaling": 25.0}),
    "shira": row("shira", {"r": 32}, "Shira", {"r": 32, "random_seed": 42}),
    "supertuning": row("supertuning", {"density": 0.01}, "Supertuning", {"sparsity": 0.99}),
    "c3a": row("c3a", lambda n, k: {"b": block(n, k)}, "C3A", lambda n, k: {"block_size": block(n, k)}),
    "loha": row("loha", {"r": 8, "alpha": 8.0}, "LoHa", {"r": 8, "alpha": 8}, "Loha", {"lora_dim": 8, "alpha": 8}),
    "hira": row("hira", {"r": 32}, "Hira", {"r": 32}),
    "lokr": row("lokr", {"r": 8, "alpha": 8.0}, "LoKr", {"r": 8, "alpha": 8}, "Lokr", {"lora_dim": 8, "alpha": 8}),
    "lokr_f8": row("lokr", {"r": FULL, "alpha": float(FULL), "near": 8}, "LoKr",
                   {"r": FULL, "alpha": FULL, "decompose_factor": 8}, "Lokr", LOKR8),
    "oft": row("oft", {"b": 32}, "OFT", {"oft_block_size": 32, "use_cayley_neumann": False},
               "DiagOFT", {"lora_dim": 32}),
    "boft_m1": row("boft", {"b": 8, "stages": 1}, "BOFT", {"boft_block_size": 8, "boft_n_butterfly_factor": 1}),
    "boft_m2": row("boft", {"b": 8, "stages": 2}, "BOFT", {"boft_block_size": 8, "boft_n_butterfly_factor": 2}),
    "boft_b4m4": row("boft", {"b": 4, "stages": 4}, "BOFT", {"boft_block_size": 4, "boft_n_butterfly_factor": 4}),
    "hra": row("hra", {"r": 8}, "HRA", {"r": 8}),
    "road": row("road", {"g": 64}, "Road", {"variant": "road_1", "group_size": 64}),
    "ia3": row("ia3", {}, "IA3", {"feedforward_modules": []}, "IA3", {}),
    "ia3_ff": row("ia3", {"feedforward": True}, "IA3", {"feedforward_modules": ["lin"]},
                  "IA3", {"train_on_input": True}),
    "miss": row("miss", {"r": 64}, "Miss", {"r": 64}),
    "miss_bat": row("miss_bat", {"r": 64}, "Miss", {"r": 64, "init_weights": "bat"}),
    "gralora": row("gralora", {"r": 32, "k": 2, "alpha": 32.0}, "Gralora", {"r": 32, "alpha": 32, "gralora_k": 2}),
    "deft": row("deft", {"r": 8, "decomposition": "relu"}, "Deft", {"r": 8, "decomposition_method": "relu"}),
    "glora": row("glora", {"r": 8}, "Glora", {"r": 8}, "GLoRA", {"lora_dim": 8}),
    "peanut": row("peanut", {"r": 32}, "Peanut", {"r": 32, "depth": 0}),
    "osf": row("osf", lambda n, k: {"rank": min(n, k) // 2}, "OSF", lambda n, k: {"effective_rank": min(n, k) // 2}),
    "adamss": row("adamss", {"r": 100, "subspaces": 5}, "Adamss", {"r": 100, "num_subspaces": 5}),
    "frod": row("frod", {}, "Frod", {"progressbar": False}),
    "beft": row("beft", {}, "Beft", {}),
}  # fmt: skip
"""In the order of the table of targets."""


class Holder(nn.Module):
    """A linear layer by a name that a configuration can ask for."""

    def __init__(self, lin: nn.Linear) -> None:
        super().__init__()
        self.lin = lin

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lin(x)
        return y


def of_peft(one: Row, base: nn.Linear) -> nn.Module:
    """The layer as PEFT adapts it, adapters in the base's dtype."""
    import peft
    from peft.tuners.boft import layer

    if layer.get_fbd_cuda() is None:  # without its CUDA extension PEFT takes one stage whatever it is told
        layer._FBD_CUDA = types.SimpleNamespace(forward=_block_diagonal, backward=_blocks)

    def made(value: Any) -> Any:
        return getattr(peft, value[0])(**value[1]) if isinstance(value, tuple) else value

    n, k = base.weight.shape
    options = {name: made(value) for name, value in one.options(n, k).items()}
    config = getattr(peft, f"{one.config}Config")(target_modules=["lin"], **options)
    model: nn.Module = peft.get_peft_model(Holder(base), config)
    return model.to(base.weight.dtype).base_model.model.lin  # type: ignore[union-attr, return-value]


def _block_diagonal(blocks: Tensor) -> list[Tensor]:
    return [torch.stack([torch.block_diag(*stage) for stage in blocks])]  # type: ignore[no-untyped-call]


def _blocks(g: Tensor, blocks: Tensor) -> list[Tensor]:
    h = blocks.shape[-1]
    cuts = [slice(i * h, (i + 1) * h) for i in range(blocks.shape[1])]
    return [torch.stack([g[:, cut, cut] for cut in cuts], dim=1)]


def of_lycoris(one: Row, base: nn.Linear) -> nn.Module | None:
    """The layer as LyCORIS adapts it; None where it has no such method."""
    if one.lycoris is None:
        return None
    from lycoris import modules

    name, options = one.lycoris
    base.requires_grad_(False)
    module: nn.Module = getattr(modules, f"{name}Module")("lin", base, 1.0, **options).to(base.weight.dtype)
    module.apply_to()  # type: ignore[operator]
    holder = Holder(base)
    holder.adapter = module
    return holder
