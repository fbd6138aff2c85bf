"""The demo on a tiny encoder and a CSV of its own: what it writes, and what it says to unusable input."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

VERBS, PLACES = ["sees", "runs", "sleeps"], ["near", "far", "tree", "house"]
WORDS = ["the", "cat", "dog", *VERBS, *PLACES]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a BERT of random weights and a tokenizer of a few words."""
    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(WORDS) + 5, **sizes)).save_pretrained(folder)
    BertTokenizerFast(vocab_file=str(vocabulary)).save_pretrained(folder)
    return folder


@pytest.fixture
def texts(tmp_path):
    """Two labels that one word tells apart."""
    path = tmp_path / "texts.csv"
    with path.open("w", newline="") as file:
        rows = [(f"the {c} {v} {p}", c) for c in ("cat", "dog") for v in VERBS for p in PLACES]
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def demo(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "adaptc", "demo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_every_family_trains_and_merges(encoder, texts, tmp_path):
    done = demo("--model", encoder, "--data", texts, "--out", tmp_path, "--passes", 2, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert rows == json.loads(next(tmp_path.glob("*.json")).read_text())
    assert [r["method"] for r in rows] == ["head", "lora", "vera", "lokr", "boft", "fourierft", "hra"]
    for row in rows:
        assert row["merged_predicts_the_same"]
        assert row["merged_logits_differ_by"] < 1e-4
        assert 0 <= row["accuracy_before"] <= 1
        assert row["equation"].startswith("W' = ")
    assert all(r["bytes_kept_for_backward"] > 0 and r["trainable_parameters"] > 66 for r in rows[1:])
    assert next(tmp_path.glob("*.png")).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        ("text,label\na b,x\nc d,x\n", (), "label"),
        ("words,kind\na,b\n", (), "columns"),
        ("text,label\na,x\nb,y\n", ("--methods", "nothing"), "no method 'nothing'"),
        (None, (), "no_such.csv"),
    ],
)
def test_unusable_input_is_one_clear_line(encoder, tmp_path, data, options, said):
    path = tmp_path / ("texts.csv" if data else "no_such.csv")
    if data:
        path.write_text(data)
    done = demo("--model", encoder, "--data", path, "--out", tmp_path / "out", *options)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert said in done.stderr
