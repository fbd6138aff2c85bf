"""Fine-tune a pretrained encoder to classify texts, once per family of adapters, and compare them.

    python examples/finetune_encoder.py
    python examples/finetune_encoder.py --model FOLDER --data texts.csv --methods lora,hra

Any Hugging Face encoder folder and any CSV with the columns text and label will do. By default
all-MiniLM-L6-v2 learns to tell from which package of Python's standard library a docstring comes.
The encoder stays frozen; its adapters and a linear head are trained. "head only" has no adapters.
"""

import csv
import json
import random
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import click
import matplotlib.pyplot as plt
import stdlib_docstrings
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import adaptc as ac
from adaptc.methods import boft, fourierft, hra, lokr, lora, vera

METHODS = {  # name: adapter, learning rate
    "head only": (None, 0.0),
    "lora": (lora(r=8, alpha=16), 2e-3),
    "vera": (vera(r=256), 2e-2),
    "lokr": (lokr(r=8, alpha=8), 2e-3),
    "boft": (boft(b=4, stages=2), 5e-3),
    "fourierft": (fourierft(m=1000, alpha=150), 5e-2),
    "hra": (hra(r=8), 5e-3),
}
HEAD_RATE, BATCH, TOKENS = 3e-2, 32, 48
Pairs = list[tuple[str, str]]  # text, label
Batch = tuple[dict[str, Tensor], Tensor]  # tokens, labels


@dataclass
class Result:
    """One row of the table."""

    method: str
    equation: str
    trainable: int
    accuracy_before: float
    accuracy_after: float
    seconds_per_step: float
    kept_bytes: int
    merge_difference: float
    merge_same: bool


class Classifier(nn.Module):
    """A linear head on the mean-pooled, normalised embedding of a frozen encoder."""

    def __init__(self, folder: Path, classes: int) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
        self.head = nn.Linear(self.encoder.config.hidden_size, classes)

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        states = self.encoder(**tokens).last_hidden_state * tokens["attention_mask"].unsqueeze(-1)
        return self.head(F.normalize(states.sum(1), dim=1))


def read(path: Path) -> Pairs:
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if not {"text", "label"} <= set(rows.fieldnames or []):
            raise click.ClickException(f"{path} has no columns text and label: {rows.fieldnames}")
        return [(row["text"], row["label"]) for row in rows if row["text"] and row["label"]]


def split(pairs: Pairs, seed: int) -> tuple[Pairs, Pairs]:
    """Three quarters of the texts of every label for training, one for testing."""
    texts = defaultdict(list)
    for text, label in pairs:
        texts[label].append(text)
    if len(texts) < 2 or min(map(len, texts.values())) < 2:
        raise click.ClickException("at least two labels with two texts each are needed")
    train, test = [], []
    for label, group in sorted(texts.items()):
        random.Random(seed).shuffle(group)
        cut = max(1, len(group) // 4)
        test += [(text, label) for text in group[:cut]]
        train += [(text, label) for text in group[cut:]]
    return train, test


def batches(pairs: Pairs, labels: list[str], tokenizer) -> list[Batch]:
    """Texts of about the same length together, so that little is padding."""
    pairs = sorted(pairs, key=lambda pair: len(pair[0]))
    made = []
    for start in range(0, len(pairs), BATCH):
        texts, names = zip(*pairs[start : start + BATCH], strict=True)
        options = dict(padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        made.append((dict(tokenizer(list(texts), **options)), torch.tensor([labels.index(name) for name in names])))
    return made


@torch.no_grad()
def predict(model: Classifier, data: list[Batch]) -> Tensor:
    model.eval()
    return torch.cat([model(tokens) for tokens, _ in data])


def kept_bytes(model: Classifier, batch: Batch) -> int:
    """Bytes the forward of a step keeps for backward, without parameters and buffers."""
    ours = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        F.cross_entropy(model.train()(batch[0]), batch[1])
    return sum(storage.nbytes() for address, storage in kept.items() if address not in ours)


def train(model: Classifier, data: list[Batch], rate: float, passes: int, advance) -> None:
    adapters = {"params": list(ac.adapter_parameters(model)), "lr": rate}
    groups = [{"params": model.head.parameters(), "lr": HEAD_RATE}] + ([adapters] if rate else [])
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, passes * len(data))
    model.train()
    for _ in range(passes):
        for tokens, labels in random.sample(data, len(data)):
            loss = F.cross_entropy(model(tokens), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            advance()
