"""Fine-tune a pretrained encoder to classify texts, once per family of adapters, and compare them.

    python examples/finetune_encoder.py
    python examples/finetune_encoder.py --model FOLDER --data texts.csv --methods lora,hra

Any Hugging Face encoder folder and any CSV with the columns text and label will do. By default
all-MiniLM-L6-v2 learns to tell from which package of Python's standard library a docstring comes.
The encoder is frozen; adapters on its linears and a linear head are trained ("head": no adapters).
"""

import time
from pathlib import Path
from typing import Any

import click
import demo_inputs
import torch
from demo_report import Row, bytes_kept, report
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import adaptc as ac
from adaptc.methods import boft, fourierft, hra, lokr, lora, vera

METHODS = {  # name: adapter, its learning rate
    "head": (None, 0.0),
    "lora": (lora(r=8, alpha=16.0), 2e-3),
    "vera": (vera(r=128), 1e-2),
    "lokr": (lokr(r=8, alpha=8.0), 5e-3),
    "boft": (boft(b=8, stages=2), 2e-3),
    "fourierft": (fourierft(m=1000, alpha=150.0), 5e-2),
    "hra": (hra(r=8), 5e-3),
}
HEAD_RATE, BATCH = 0.1, 16
PADDED = {"padding": True, "truncation": True, "max_length": 32, "return_tensors": "pt"}
Data = list[tuple[dict[str, Tensor], Tensor]]  # batches of tokens and labels


class Classifier(nn.Module):
    """A linear head on the mean-pooled, normalised embedding; in eval mode, without dropout."""

    def __init__(self, folder: Path, classes: int) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
        self.head = nn.Linear(self.encoder.config.hidden_size, classes)

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        states = self.encoder(**tokens).last_hidden_state * tokens["attention_mask"].unsqueeze(-1)
        return self.head(normalize(states.sum(1), dim=1))  # the sum has the direction of the mean


def batches(pairs: demo_inputs.Pairs, labels: list[str], tokenizer: Any) -> Data:
    """Texts of like length together, so that little is padding."""
    pairs, made = sorted(pairs, key=lambda pair: len(pair[0])), []
    for start in range(0, len(pairs), BATCH):
        texts, names = map(list, zip(*pairs[start : start + BATCH], strict=True))
        tokens = tokenizer(texts, **PADDED)
        made.append((dict(tokens), torch.tensor([labels.index(name) for name in names])))
    return made


@torch.no_grad()
def predict(model: Classifier, data: Data) -> Tensor:
    return torch.cat([model(tokens) for tokens, _ in data])


def train(model: Classifier, rate: float, steps: Data, bar: Progress, name: str) -> None:
    adapters = {"params": ac.adapter_parameters(model), "lr": rate}
    optimizer = torch.optim.AdamW([adapters, {"params": model.head.parameters(), "lr": HEAD_RATE}])
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=len(steps))
    for tokens, labels in bar.track(steps, description=name):
        optimizer.zero_grad()
        cross_entropy(model(tokens), labels).backward()
        optimizer.step()
        schedule.step()


def measure(model: Classifier, method: str, steps: Data, test: Data, bar: Progress) -> Row:
    """A row of the table: adapt the model, train it, merge it."""
    adapter, rate = METHODS[method]
    if adapter:
        ac.inject(model.encoder, adapter, "all-linear", exclude_modules=".*pooler.*")
    largest = max(steps, key=lambda batch: batch[0]["input_ids"].numel())
    before, kept = predict(model, test), bytes_kept(model, *largest)
    start = time.perf_counter()
    train(model, rate, [steps[i] for i in torch.randperm(len(steps))], bar, method)
    seconds = time.perf_counter() - start
    after = predict(model, test)
    if adapter:
        ac.merge(model.encoder)
    merged = predict(model, test)
    labels = torch.cat([labels for _, labels in test])
    return {
        "method": method,
        "equation": adapter.formula if adapter else "W' = W",
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "accuracy_before": (before.argmax(1) == labels).float().mean().item(),
        "accuracy_after": (after.argmax(1) == labels).float().mean().item(),
        "seconds_per_step": seconds / len(steps),
        "bytes_kept_for_backward": kept,
        "merged_predicts_the_same": merged.argmax(1).equal(after.argmax(1)),
        "merged_logits_differ_by": (merged - after).abs().max().item(),
    }


def run(model: Path | None, data: Path | None, methods: list[str], passes: int, out: Path, seed: int) -> list[Row]:
    """Train every method from the same start. Raises click.ClickException for unusable input."""
    if unknown := [method for method in methods if method not in METHODS]:
        raise click.ClickException(f"no method {unknown[0]!r} here: {', '.join(METHODS)}")
    disable_progress_bar()
    folder = demo_inputs.model_folder(model)
    pairs = demo_inputs.read(data) if data else demo_inputs.docstrings()
    labels = sorted({label for _, label in pairs})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    training, test = (batches(part, labels, tokenizer) for part in demo_inputs.split(pairs, seed))
    rows = []
    with Progress() as bar:
        for method in methods:
            torch.manual_seed(seed)
            classifier = Classifier(folder, len(labels))
            rows.append(measure(classifier, method, training * passes, test, bar))
    report(rows, out)
    if broken := [row["method"] for row in rows if not row["merged_predicts_the_same"]]:
        raise click.ClickException(f"merging changed what these predict: {', '.join(broken)}")
    return rows


@click.command(help=__doc__)
@click.option("--model", type=Path, help="Folder of an encoder; none: all-MiniLM-L6-v2.")
@click.option("--data", type=Path, help="CSV with columns text and label; none: docstrings.")
@click.option("--methods", default=",".join(METHODS), show_default=True)
@click.option(
    "--passes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Passes over the training texts.",
)
@click.option("--out", type=Path, default="demo-output", show_default=True, help="Folder to fill.")
@click.option("--seed", default=0, show_default=True, help="Of split, initial values and order.")
def main(methods: str, **options: Any) -> None:
    run(methods=methods.split(","), **options)


if __name__ == "__main__":
    main()
