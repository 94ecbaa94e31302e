# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
A task that needs sorting. Every block is a page: its number over and over, then its answer over and
over. The first page names another one, and the class is that page's answer, read at the first token. Local attention
cannot fetch it from another block; each SortNet can learn to, soft and hard.

Pages repeat themselves on purpose. With the pointer, the number and the answer written once each among random words, soft
bilinear sorting was still at chance after 600 steps of this training: this task shows that sorting carries what is asked
for, not that it finds a single token.
"""

import pytest
import torch

from helpers import tiny_config
from modeling_sinkhorn import SinkhornForSequenceClassification


CLASSES, LENGTH, BLOCK = 8, 256, 16
PAGES = LENGTH // BLOCK
ANSWERS, NUMBERS, POINTERS = 1, 10, 30  # where each kind of token begins in the vocabulary of 50


def draw(batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """`(B, 256)` tokens, and the classes `(B,)`."""
    answers = torch.randint(CLASSES, (batch, PAGES), generator=generator)
    tokens = torch.empty(batch, PAGES, BLOCK, dtype=torch.long)
    tokens[:, :, : BLOCK // 2] = NUMBERS + torch.arange(PAGES).unsqueeze(-1)
    tokens[:, :, BLOCK // 2 :] = ANSWERS + answers.unsqueeze(-1)
    page = torch.randint(1, PAGES, (batch,), generator=generator)
    tokens[:, 0] = POINTERS + page.unsqueeze(-1)
    return tokens.flatten(1), answers[torch.arange(batch), page]


def accuracy_after(steps: int, **overrides) -> float:
    """Of a small model on 512 fresh texts; chance is .125."""
    torch.manual_seed(0)
    config = tiny_config(
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
        block_size=BLOCK,
        initializer_range=0.1,
        num_labels=CLASSES,
        classifier_pooling="cls",
        **overrides,
    )
    model = SinkhornForSequenceClassification(config)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        tokens, labels = draw(32, generator)
        loss = model(tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    tokens, labels = draw(512, generator)
    with torch.no_grad():
        return (model.eval()(tokens).logits.argmax(-1) == labels).float().mean().item()


@pytest.mark.slow  # a minute each
@pytest.mark.parametrize("assignment", ["soft", "hard"])
@pytest.mark.parametrize("sort_net", ["linear", "mlp", "bilinear"])
def test_sorting_finds_the_page(sort_net, assignment):
    assert accuracy_after(400, sort_net=sort_net, sort_assignment=assignment) > 0.9


@pytest.mark.slow
def test_local_attention_does_not():
    assert accuracy_after(400, layer_type="local_attention") < 0.2
