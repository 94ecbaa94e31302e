# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The pages of `docs/explorer/` are those that the template and the shipped models make."""

import pytest
import torch
from transformers import AutoTokenizer

from exploring.explore import load_with_head
from exploring.page import make_page, read_page
from helpers import ROOT
from maintenance import explorer
from maintenance.recipes import CAUSAL_LM, CLASSIFIER
from plotting.inputs import ModelSource


@pytest.mark.parametrize("name", [CLASSIFIER, CAUSAL_LM])
def test_pages_are_the_models(name):
    text = explorer.path_of(name).read_text(encoding="utf-8")
    data = read_page(text)
    assert make_page(data) == text, "run scripts/maintain.py explorer --template_only"
    assert len(text.encode()) < 500_000
    folder = str(ROOT / "checkpoints" / name)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), load_with_head(ModelSource(folder))
    ids = tokenizer.convert_tokens_to_ids("<s>"), *tokenizer("".join(data["tokens"][1:]))["input_ids"][1:]
    assert abs(len(ids) - len(data["tokens"])) <= 1  # where the text is cut, its last word may be another token
    with torch.no_grad():
        logits = model(torch.tensor([ids[: len(data["tokens"])]])).logits
    probabilities = logits.flatten(0, -2)[-1].softmax(-1)
    if name == CLASSIFIER:
        found = dict(data["classes"]["listed"])
        expected = {model.config.id2label[number]: value for number, value in enumerate(probabilities.tolist())}
        assert found == pytest.approx(expected, abs=2e-3)
    else:
        expected = probabilities.topk(10)[0].tolist()
        assert [value for _, value in data["next"]["listed"]] == pytest.approx(expected, abs=2e-3)


def test_the_template_is_renewed_alone(tmp_path):
    page = explorer.path_of(CAUSAL_LM, tmp_path)
    page.write_text(explorer.path_of(CAUSAL_LM).read_text(encoding="utf-8").replace("<header>", "<header >"))
    explorer.main(["--output_dir", str(tmp_path), "--only", CAUSAL_LM, "--template_only"])
    assert page.read_bytes() == explorer.path_of(CAUSAL_LM).read_bytes()
