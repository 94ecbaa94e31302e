# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`run_classification.py --classifier_pooling mean`, in models that have no such pooling of their own and in those that have."""

import csv
import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from test_run_classification import run, write_table
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    ModernBertConfig,
    ViTConfig,
)

from common.errors import UserError
from configuration_sinkhorn import SinkhornConfig
from hub.run_card import card_from_run
from training.mean_of_tokens import choose_pooling, classifier_class, read_documents, takes_mean_of_tokens
from training.tokenizer import train_tokenizer


SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
FEW_STEPS = ["--use_cpu", "--num_train_epochs", 1, "--learning_rate", 0.01, "--skip_baselines"]


@pytest.fixture
def tiny_bert(tmp_path) -> Path:
    tokenizer = train_tokenizer(["cats and dogs at home", "sails and masts at sea"] * 20, 270, show_progress=False)
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=0, max_position_embeddings=128, **SMALL)
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def shares(folder: Path) -> torch.Tensor:
    with open(folder / "predict_results.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return torch.tensor([[float(row["p(pets)"]), float(row["p(ships)"])] for row in rows])


def test_a_trained_folder_gives_its_predictions_by_classes_of_the_library(tiny_bert, tmp_path, monkeypatch):
    train, new, out = write_table(tmp_path / "train.csv", 24), tmp_path / "new.csv", tmp_path / "out"
    texts = ["cats and dogs at home " * 9, "sails"]
    new.write_text("text\n" + "".join(f"{text}\n" for text in texts))
    flags = ["--model_name_or_path", tiny_bert, "--train_file", train, "--test_file", new, *FEW_STEPS]
    flags += ["--attn_implementation", "sinkhorn", "--sinkhorn_attention", "block_size=8,num_sorted_blocks=1"]
    run(monkeypatch, "--output_dir", out, *flags, "--classifier_pooling", "mean")
    saved = json.loads((out / "config.json").read_text())
    assert saved["architectures"] == ["BertForTokenClassification"] and saved["classifier_pooling"] == "mean"

    model = AutoModelForTokenClassification.from_pretrained(out, attn_implementation="sinkhorn").eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    with torch.no_grad():
        alone = [model(**tokenizer(text, return_tensors="pt")).logits.mean(1) for text in texts]
    expected = torch.cat(alone).softmax(-1)
    torch.testing.assert_close(shares(out), expected, atol=1e-4, rtol=0)
    code = re.search("```py\n(.*)```", card_from_run(out, "mine", "apache-2.0"), re.DOTALL)[1].replace(
        "USER/mine", str(out)
    )
    with torch.no_grad(), redirect_stdout(io.StringIO()) as printed:
        exec(code, {"text": texts[0]})  # noqa: S102
    assert printed.getvalue().strip() == ["pets", "ships"][expected[0].argmax()]
    again = ["--model_name_or_path", out, "--do_predict", "--test_file", new, "--use_cpu"]
    run(monkeypatch, "--output_dir", tmp_path / "again", *again)
    torch.testing.assert_close(shares(tmp_path / "again"), expected, atol=1e-4, rtol=0)


def test_loss_and_logits_are_of_the_mean_without_padding():
    torch.manual_seed(0)
    model = BertForTokenClassification(BertConfig(vocab_size=20, num_labels=3, **SMALL)).eval()
    ids, mask = torch.randint(1, 20, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    labels = torch.tensor([2, 0])
    by_token = model(ids, attention_mask=mask).logits
    expected = torch.stack([by_token[0].mean(0), by_token[1, :4].mean(0)])
    read_documents(model)
    outputs = model(input_ids=ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(outputs.logits, expected)
    torch.testing.assert_close(outputs.loss, cross_entropy(expected, labels))
    assert model(input_ids=ids, attention_mask=mask).loss is None


@pytest.mark.parametrize("kind", [SinkhornConfig, ModernBertConfig])
def test_models_that_pool_themselves_are_told_to(kind):
    config = kind()
    choose_pooling(config, "mean")
    assert config.classifier_pooling == "mean" and not takes_mean_of_tokens(config)
    assert classifier_class(config).__name__ == "AutoModelForSequenceClassification"
    choose_pooling(config, "cls")
    choose_pooling(config, None)
    assert config.classifier_pooling == "cls"


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="--classifier_pooling must be mean or cls, got max"):
        choose_pooling(BertConfig(), "max")
    with pytest.raises(UserError, match="--classifier_pooling mean: vit models do not classify tokens"):
        choose_pooling(ViTConfig(), "mean")
    config = GPT2Config()
    choose_pooling(config, None)
    assert not hasattr(config, "classifier_pooling")
    choose_pooling(config, "mean")
    assert classifier_class(config) is AutoModelForTokenClassification
