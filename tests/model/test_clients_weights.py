# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Libraries that put other weights in place of a model's own: LoRA by PEFT, int8 by torchao."""

import pytest
import torch
from test_clients import TEXTS, make, rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from helpers import assert_close
from modeling_sinkhorn import SinkhornForCausalLM, SinkhornForSequenceClassification


# PEFT ----------------------------------------------------------------------------------------------------------------

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "row_proj", "column_proj"]


def train_lora(model, task: str, batch: dict[str, torch.Tensor], **settings):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type=task, r=4, target_modules=LORA_TARGETS, **settings)
    adapted = peft.get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = adapted(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    return peft, adapted.eval()


def frozen(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def check_adapter(adapted, reloaded, base, before, batch: dict[str, torch.Tensor]) -> None:
    """The reloaded adapter and the merged weights give what the trained one gives, and the base model is as it was."""
    batch = {name: tensor for name, tensor in batch.items() if name != "labels"}
    expected = adapted(**batch).logits
    assert (expected - base(**batch).logits).abs().max() > 0.01
    assert_close(reloaded.eval()(**batch).logits, expected, 1e-6)
    for name, parameter in base.named_parameters():
        assert torch.equal(parameter, before[name])
    merged = reloaded.merge_and_unload()
    assert type(merged) is type(base) and not any("lora" in name for name, _ in merged.named_parameters())
    assert_close(merged(**batch).logits, expected)


@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_peft_lora_of_a_classifier(assignment, tiny_tokenizer, tmp_path):
    data = rows(8)
    batch = dict(tiny_tokenizer(data["text"], padding=True, return_tensors="pt"), labels=torch.tensor(data["label"]))
    base = make(SinkhornForSequenceClassification, num_labels=2, sort_assignment=assignment)
    base.save_pretrained(tmp_path / "base")
    before = frozen(base)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    peft, adapted = train_lora(model, "SEQ_CLS", batch, modules_to_save=["score"])
    names = {name.split(".")[-4] for name, _ in adapted.named_parameters() if "lora_B" in name}
    assert names == set(LORA_TARGETS)
    for name, parameter in adapted.named_parameters():  # an untrained B is 0
        assert "lora_B" not in name or parameter.abs().max() > 0, f"{name} was not trained"
    adapted.save_pretrained(tmp_path / "adapter")
    for load in (
        lambda: peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter"),
        lambda: peft.PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
        ),
    ):
        check_adapter(adapted, load(), base, before, batch)


def test_peft_lora_of_a_language_model_writes(tiny_tokenizer, tmp_path):
    batch = dict(tiny_tokenizer(rows(8)["text"], padding=True, return_tensors="pt"))
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    base = make(SinkhornForCausalLM, eos_token_id=None)
    base.save_pretrained(tmp_path / "base")
    before = frozen(base)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft, adapted = train_lora(model, "CAUSAL_LM", batch)
    adapted.save_pretrained(tmp_path / "adapter")
    prompt = tiny_tokenizer(TEXTS[2], return_tensors="pt").input_ids
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    tokens = prompt
    for _ in range(12):
        with torch.no_grad():
            tokens = torch.cat((tokens, adapted(input_ids=tokens).logits[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(adapted.generate(input_ids=prompt, **settings), tokens)
    reloaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(reloaded.generate(input_ids=prompt, **settings), tokens)
    check_adapter(adapted, reloaded, base, before, batch)


# int8 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
@torch.no_grad()
def test_int8_by_torchao(kind, tmp_path):
    torchao = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    wide = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.1, "eos_token_id": None}
    model, batch = make(SinkhornForCausalLM, **wide), torch.randint(3, 300, (2, 37))
    model.save_pretrained(tmp_path / "float")
    config = TorchAoConfig(getattr(torchao, kind)())
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=config)
    linear = small.model.layers[0].self_attn.sort_net.row_proj.weight
    assert type(linear) is not torch.nn.Parameter and type(small.lm_head.weight) is torch.nn.Parameter
    expected, actual = model(batch).logits, small(batch).logits
    assert 0 < (actual - expected).norm() / expected.norm() < 0.05
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    tokens = batch
    for _ in range(12):
        tokens = torch.cat((tokens, small(tokens).logits[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(small.generate(batch, **settings), tokens)
    small.save_pretrained(tmp_path / "int8")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "int8")(batch).logits, actual)
