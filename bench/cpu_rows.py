"""The rows of the CPU benchmark: each method with the hyper-parameters it is measured at, and PEFT's name for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import adaptc as ac
from adaptc.methods import catalogue

Hyper = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """method and hyper: ours, which may depend on the sizes (n, k). config: PEFT's class and options."""

    method: str
    hyper: Callable[[int, int], Hyper]
    config: str
    options: Callable[[int, int], Hyper]

    def adapter(self, n: int, k: int) -> ac.Adapter:
        """Ours."""
        return catalogue()[self.method](**self.hyper(n, k))


def row(method: str, hyper: Hyper, config: str, **options: Any) -> Row:
    """One whose hyper-parameters are the same for every size."""
    return Row(method, lambda n, k: hyper, config, lambda n, k: options)


def block(n: int, k: int, most: int) -> int:
    """The largest common divisor of both sizes that is at most `most`."""
    both = math.gcd(n, k)
    return max(d for d in range(1, most + 1) if both % d == 0)


ROWS = {
    "lora": row("lora", {"r": 8, "alpha": 16.0}, "LoraConfig", r=8, lora_alpha=16),
    "lora_r64": row("lora", {"r": 64, "alpha": 64.0}, "LoraConfig", r=64, lora_alpha=64),
    "dora": row("dora", {"r": 8, "alpha": 16.0}, "LoraConfig", r=8, lora_alpha=16, use_dora=True),
    "kasa": row("kasa", {"r": 8, "alpha": 16.0}, "LoraConfig", r=8, lora_alpha=16, kasa=True),
    "lora_bd": row(
        "lora_bd", {"r": 16, "alpha": 16.0, "blocks": 4, "diagonal": "A"}, "LoraConfig", r=16, lora_alpha=16, bd=4
    ),
    "adalora": row("adalora", {"r": 12, "alpha": 12.0}, "AdaLoraConfig", init_r=12, lora_alpha=12, total_step=10),
    "delora": row("delora", {"r": 8}, "DeloraConfig", r=8, delora_lambda=15),
    "vblora": Row(
        "vblora",
        lambda n, k: {"r": 4, "vectors": 256, "length": block(n, k, 256), "topk": 2},
        "VBLoRAConfig",
        lambda n, k: {"r": 4, "num_vectors": 256, "vector_length": block(n, k, 256), "topk": 2},
    ),
    "unilora": row("unilora", {"r": 4, "d": 256}, "UniLoraConfig", r=4, theta_d_length=256),
    "vera": row("vera", {"r": 256}, "VeraConfig", r=256, projection_prng_key=0),
    "randlora": row("randlora", {"r": 32, "alpha": 640.0}, "RandLoraConfig", r=32),
    "tinylora": row("tinylora", {"r": 2, "u": 64}, "TinyLoraConfig", r=2, u=64),
    "psoft": row("psoft", {"r": 32}, "PsoftConfig", r=32, psoft_alpha=32),
    "fourierft": row("fourierft", {"m": 1000, "alpha": 150.0}, "FourierFTConfig", n_frequency=1000, scaling=150.0),
    "waveft": row("waveft", {"n_frequency": 2592, "alpha": 25.0}, "WaveFTConfig", n_frequency=2592, scaling=25.0),
    "shira": row("shira", {"r": 32}, "ShiraConfig", r=32, random_seed=42),
    "supertuning": row("supertuning", {"density": 0.01}, "SupertuningConfig", sparsity=0.99),
    "c3a": Row("c3a", lambda n, k: {"b": block(n, k, 256)}, "C3AConfig", lambda n, k: {"block_size": block(n, k, 256)}),
    "loha": row("loha", {"r": 8, "alpha": 8.0}, "LoHaConfig", r=8, alpha=8),
    "hira": row("hira", {"r": 32}, "HiraConfig", r=32),
    "lokr": row("lokr", {"r": 8, "alpha": 8.0}, "LoKrConfig", r=8, alpha=8),
    "lokr_f8": row(
        "lokr", {"r": 10000, "alpha": 10000.0, "near": 8}, "LoKrConfig", r=10000, alpha=10000, decompose_factor=8
    ),
    "oft": row("oft", {"b": 32}, "OFTConfig", oft_block_size=32, use_cayley_neumann=False),
    "boft_m1": row("boft", {"b": 8, "stages": 1}, "BOFTConfig", boft_block_size=8, boft_n_butterfly_factor=1),
    "boft_m2": row("boft", {"b": 8, "stages": 2}, "BOFTConfig", boft_block_size=8, boft_n_butterfly_factor=2),
    "boft_b4m4": row("boft", {"b": 4, "stages": 4}, "BOFTConfig", boft_block_size=4, boft_n_butterfly_factor=4),
    "hra": row("hra", {"r": 8}, "HRAConfig", r=8),
    "road": row("road", {"g": 64}, "RoadConfig", variant="road_1", group_size=64),
    "ia3": row("ia3", {}, "IA3Config", feedforward_modules=[]),
    "miss": row("miss", {"r": 64}, "MissConfig", r=64),
    "miss_bat": row("miss_bat", {"r": 64}, "MissConfig", r=64, init_weights="bat"),
    "gralora": row("gralora", {"r": 32, "k": 2, "alpha": 32.0}, "GraloraConfig", r=32, alpha=32, gralora_k=2),
    "deft": row("deft", {"r": 8, "decomposition": "relu"}, "DeftConfig", r=8, decomposition_method="relu"),
    "glora": row("glora", {"r": 8}, "GloraConfig", r=8),
    "peanut": row("peanut", {"r": 32}, "PeanutConfig", r=32, depth=0),
    "osf": Row(
        "osf", lambda n, k: {"rank": min(n, k) // 2}, "OSFConfig", lambda n, k: {"effective_rank": min(n, k) // 2}
    ),
    "adamss": row("adamss", {"r": 100, "subspaces": 5}, "AdamssConfig", r=100, num_subspaces=5),
    "frod": row("frod", {}, "FrodConfig", progressbar=False),
    "beft": row("beft", {}, "BeftConfig"),
}
