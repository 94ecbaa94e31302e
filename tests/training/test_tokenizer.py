# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The tokenizers that the scripts train, and those that ship: pairs of texts, and masks in running text."""

import pytest
from transformers import AutoTokenizer, pipeline

import modeling_sinkhorn  # noqa: F401  registers the classes
from helpers import ROOT


SHIPPED = sorted(path.parent.name for path in (ROOT / "checkpoints").glob("*/tokenizer.json"))


def tokenizer_called(name: str, folder):
    """A shipped one, or one as a script leaves it for its user: trained, saved and loaded again."""
    from training.tokenizer import train_tokenizer

    if name != "trained":
        return AutoTokenizer.from_pretrained(ROOT / "checkpoints" / name)
    train_tokenizer(["cats and dogs at home"] * 20, 300, show_progress=False).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["trained", *SHIPPED])
def test_pairs_and_masks(name, tmp_path, monkeypatch):
    tokenizer = tokenizer_called(name, tmp_path)
    start, end, mask = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id

    def plain(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    assert tokenizer("cats and")["input_ids"] == [start, *plain("cats and")]
    assert tokenizer("cats", " and")["input_ids"] == [start, *plain("cats"), end, *plain(" and"), end]
    assert tokenizer("cats and", " at")["input_ids"] != tokenizer("cats", " and at")["input_ids"]
    # The space before a mask belongs to the word that it stands for, as it does in the vocabulary.
    with_mask = [*plain("cats and"), mask, *plain(" home")]
    assert plain("cats and <mask> home") == plain("cats and<mask> home") == with_mask
    assert tokenizer.decode(plain(" cats  and\n\ndogs <s>")) == " cats  and\n\ndogs <s>"


@pytest.mark.parametrize("name", ["sinkhorn-sotu-encoder", "sinkhorn-books-encoder"])
def test_a_mask_in_running_text_is_filled_with_a_word(name):
    fill = pipeline("fill-mask", model=str(ROOT / "checkpoints" / name))
    assert fill("the United <mask> spoke")[0]["token_str"] == " States"
