# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Reads a document with a model, and gives all numbers of its page as one dict, which becomes JSON."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.errors import UserError
from compatibility_sinkhorn import cache_of
from exploring.packing import Format, choose_format, encode, pack_matrix, quantize
from plotting.inputs import check_tokens, cut_tokens
from plotting.recording import LEARNED, LayerSorting, mean_over_blocks, moved_weight, record_outputs
from sorting_sinkhorn import hard_assignment


# Of the bytes before base64, which makes them a third more: pages stay below 5 MB.
MOST_BYTES = 3_300_000
FEW_BYTES = 700_000
MOST_BYTES_OF_MEANS = 500_000  # of matrices between blocks, where tokens choose
TOKENS_AT_ONCE = 16_384  # of passes that leave something out
NEXT_TOKENS = 10
TOKENS_READ = 24  # of those that the last token reads, named one by one


@dataclass
class Document:
    """`L` tokens of a text: their ids, the text of each, and which of them the tokenizer added."""

    input_ids: Tensor  # (1, L)
    tokens: list[str]
    is_special: list[bool]
    next_id: int | None  # the token after them, where the text goes on


def tokenize_document(text: str, tokenizer: Any, config: Any, max_seq_length: int) -> Document:
    """The first tokens of the text, as many as the flag and the model allow; together they are the text itself."""
    has_offsets = getattr(tokenizer, "is_fast", False)
    found = tokenizer(text, return_offsets_mapping=has_offsets, return_special_tokens_mask=True, verbose=False)
    ids, special = found["input_ids"], [bool(flag) for flag in found["special_tokens_mask"]]
    check_tokens(ids, config)
    length = cut_tokens(len(ids), config, max_seq_length)
    if has_offsets:
        # A token's text reaches to where the next one begins, white space included.
        starts = [start for (start, _), flag in zip(found["offset_mapping"], special) if not flag]
        pieces = iter([text[start:end] for start, end in zip([0, *starts[1:]], [*starts[1:], len(text)])])
        tokens = [
            tokenizer.convert_ids_to_tokens(token) if flag else next(pieces) for token, flag in zip(ids, special)
        ]
    else:
        tokens = [tokenizer.decode([token]) for token in ids]
    following = next((token for token, flag in zip(ids[length:], special[length:]) if not flag), None)
    return Document(torch.tensor([ids[:length]]), tokens[:length], special[:length], following)


def read_document(
    model: PreTrainedModel,
    tokenizer: Any,
    document: Document,
    layers: list[int],
    heads: list[int],
    max_passes: int,
) -> dict[str, Any]:
    """
    Args:
        model: with its head, if it classifies documents or predicts tokens.
        layers, heads: numbers of sorting layers, and of sorting (key/value) heads.
        max_passes: of the document without a part of it, by which a classifier's answer is explained.
    """
    config, num_tokens = model.config, document.input_ids.shape[1]
    num_blocks = -(-num_tokens // config.block_size)
    forms = _formats(config, num_tokens, num_blocks, len(layers) * len(heads))
    facts: dict[str, Any] = {}

    def keep(number: int, sorting: LayerSorting) -> dict[str, Any] | None:
        if number not in layers:
            return None
        blocks = mean_over_blocks(sorting, config.block_size)
        allowed = blocks.allowed
        facts["possible"] = [num_blocks] * num_blocks if allowed is None else allowed[0].sum(-1).tolist()
        return _pack_layer(number, sorting, blocks, heads, config, forms)

    kind, kwargs = _kind(model), {}
    if kind == "language model":
        kwargs["logits_to_keep"] = 1
    found, outputs = record_outputs(model, document.input_ids, keep, **kwargs)
    page: dict[str, Any] = {
        "kind": kind,
        "block_size": config.block_size,
        "num_blocks": num_blocks,
        "is_decoder": config.is_decoder,
        "by_token": config.sort_granularity == "token",
        "is_hard": config.sort_assignment == "hard",
        "num_sorted_blocks": config.num_sorted_blocks,
        "num_local_blocks": config.num_local_blocks,
        "num_sink_blocks": config.num_sink_blocks,
        "sortcut_blocks": config.sortcut_blocks,
        "iterations": config.sinkhorn_iterations,
        "balances_equally": config.is_decoder and config.causal_balancing == "equality",
        "learned": LEARNED,
        "queries_per_head": config.num_attention_heads // config.num_key_value_heads,
        "heads": heads,
        "formats": {name: None if form is None else form._asdict() for name, form in forms.items()},
        "tokens": document.tokens,
        "layers": [found[number] for number in layers],
        **facts,
    }
    if kind == "classifier":
        page["classes"] = describe_classes(outputs.logits[0], config)
        page["left_out"] = leave_out(model, document, page["classes"]["number"], max_passes)
    if kind == "language model":
        page["next"] = next_tokens(outputs.logits[0, -1], tokenizer, document.next_id)
        page["read_last"] = describe_attention(last_attention(model, document.input_ids), layers, config.block_size)
    return page


def _kind(model: PreTrainedModel) -> str:
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return "classifier"
    if name.endswith("ForCausalLM"):
        return "language model"
    return "decoder" if model.config.is_decoder else "encoder"


# Sort matrices -------------------------------------------------------------------------------------------------------


def _formats(config: Any, num_tokens: int, num_blocks: int, matrices: int) -> dict[str, Format | None]:
    by_token = config.sort_granularity == "token"
    chosen = config.num_sorted_blocks if config.sort_assignment == "hard" else 1
    limit = MOST_BYTES_OF_MEANS if by_token else MOST_BYTES
    forms = {"blocks": choose_format(num_blocks, num_blocks, matrices, 1 if by_token else chosen, limit)}
    forms["tokens"] = None
    if by_token:
        kinds = 2 if config.sinkhorn_iterations > 0 else 1
        # A few sources of each token are enough; where even these are many, fewer.
        limits = ((max(4, chosen), FEW_BYTES), (chosen, MOST_BYTES - MOST_BYTES_OF_MEANS))
        tried = (choose_format(num_tokens, num_blocks, matrices, *limit, kinds) for limit in limits)
        forms["tokens"] = next(filter(None, tried), None)
    if forms["blocks"] is None or by_token and forms["tokens"] is None:
        raise UserError(
            f"{matrices} sort matrices of {num_blocks:,} blocks do not fit in one page: name fewer with --layer and "
            "--head, or read less with --max_seq_length."
        )
    return forms


def _pack_layer(
    number: int,
    sorting: LayerSorting,
    blocks: LayerSorting,
    heads: list[int],
    config: Any,
    forms: dict[str, Format | None],
) -> dict[str, Any]:
    moved, chosen = moved_weight(sorting), None
    if config.sort_assignment == "hard":
        choice = hard_assignment(sorting.after[None], sorting.candidates[None], config.num_sorted_blocks)
        chosen = choice.index.masked_fill(~choice.chosen, -1)[0].numpy()
    packed = []
    for head in heads:
        own = None if chosen is None else chosen[head]
        entry = {
            "moved": round(float(moved[head]), 4),
            "blocks": _pack(blocks, head, None if sorting.by_token else own, forms["blocks"]),
        }
        if sorting.by_token:
            entry["tokens"] = _pack(sorting, head, own, forms["tokens"])
        packed.append(entry)
    layer = {"number": number, "type": sorting.layer_type, "heads": packed}
    if chosen is not None:  # how many a row chose is the same in all heads: as many as it has candidates
        layer["counts"] = encode((chosen[0] >= 0).sum(-1).astype("u1"))
    return layer


def _pack(sorting: LayerSorting, head: int, chosen: np.ndarray | None, form: Format) -> dict[str, str]:
    after, before = sorting.after[head].numpy(), sorting.before[head].numpy()
    return pack_matrix(after, None if np.array_equal(after, before) else before, chosen, form)


# Classifiers ---------------------------------------------------------------------------------------------------------


def describe_classes(logits: Tensor, config: Any) -> dict[str, Any]:
    """
    The names and probabilities of the classes, most probable first; the best of them, its number, and its score, whose
    changes are shown. Of several labels each has a probability of its own; of a regression the values are the outputs.
    """
    values, scale = class_values(logits, config)
    best = int(values.argmax())
    order = list(range(len(values))) if scale == "value" else values.argsort(descending=True, stable=True).tolist()
    names = config.id2label or {}
    listed = [[str(names.get(number, number)), round(float(values[number]), 6)] for number in order]
    score = round(float(class_scores(logits, best, config)), 5)
    return {"scale": scale, "best": listed[order.index(best)], "number": best, "score": score, "listed": listed}


def class_values(logits: Tensor, config: Any) -> tuple[Tensor, str]:
    """Logits `(..., classes)` to what is shown of them, and what that is."""
    if config.problem_type == "regression" or config.num_labels == 1:
        return logits, "value"
    if config.problem_type == "multi_label_classification":
        return logits.sigmoid(), "label"
    return logits.softmax(-1), "class"


def class_scores(logits: Tensor, number: int, config: Any) -> Tensor:
    """The log-odds of one class, which change where its probability is all but 1; of a regression the output."""
    _, scale = class_values(logits, config)
    if scale != "class":
        return logits[..., number]
    others = torch.cat((logits[..., :number], logits[..., number + 1 :]), dim=-1)
    return logits[..., number] - others.logsumexp(-1)


@torch.no_grad()
def leave_out(model: PreTrainedModel, document: Document, best: int, max_passes: int) -> list[list[Any]]:
    """
    What the model says of class `best` when it reads the document without a span of blocks, for as many spans as
    `max_passes` allows: `[first block, last block, value, score]`. Tokens that the tokenizer added stay.
    """
    b, num_tokens = model.config.block_size, document.input_ids.shape[1]
    num_blocks = -(-num_tokens // b)
    if max_passes < 1 or num_blocks < 2:
        return []
    size = -(-num_blocks // min(max_passes, num_blocks))
    size = num_blocks // 2 if size == num_blocks else size
    special = torch.tensor(document.is_special)
    spans, rows = [], {}
    for first in range(0, num_blocks, size):
        last = min(first + size, num_blocks) - 1
        kept = special.clone()
        kept[: first * b] = True
        kept[(last + 1) * b :] = True
        if not kept.any():
            continue
        spans.append([first, last, 0.0, 0.0])
        left = document.input_ids[0, kept]
        rows.setdefault(len(left), []).append((spans[-1], left))  # rows of one length need no padding
    for length, group in rows.items():
        at_once = max(1, TOKENS_AT_ONCE // length)
        for start in range(0, len(group), at_once):
            part = group[start : start + at_once]
            logits = model(torch.stack([left for _, left in part])).logits
            values, _ = class_values(logits, model.config)
            scores = class_scores(logits, best, model.config)
            for (span, _), value, score in zip(part, values[:, best].tolist(), scores.tolist()):
                span[2:] = round(value, 6), round(score, 5)
    return spans


# Language models -----------------------------------------------------------------------------------------------------


def next_tokens(logits: Tensor, tokenizer: Any, following: int | None) -> dict[str, Any]:
    """The most probable next tokens, and, where the text goes on, the probability of what follows."""
    probabilities = logits.softmax(-1)
    values, ids = probabilities.topk(min(NEXT_TOKENS, len(probabilities)))
    listed = [[tokenizer.decode([token]), round(value, 6)] for value, token in zip(values.tolist(), ids.tolist())]
    found: dict[str, Any] = {"listed": listed, "following": None}
    if following is not None:
        value = float(probabilities[following])
        found["following"] = [tokenizer.decode([following]), round(value, 6)]
        found["rank"] = int((probabilities > value).sum()) + 1
    return found


@torch.no_grad()
def last_attention(model: PreTrainedModel, input_ids: Tensor) -> list[Tensor]:
    """
    `(H, L)` for each layer: the weight that the last token gave to each token. The others go into a cache first, so
    that no map of `L * L` numbers is made.
    """
    implementation, cache = model.config._attn_implementation, None
    before, last = input_ids[:, :-1], input_ids[:, -1:]
    if before.shape[1] > 0:
        cache = cache_of(model.base_model(before, use_cache=True))
    try:
        model.set_attn_implementation("eager")
        outputs = model.base_model(last, cache=cache, use_cache=cache is not None, output_attentions=True)
    finally:
        model.set_attn_implementation(implementation)
    return [attention[0, :, -1] for attention in outputs.attentions]


def describe_attention(attentions: list[Tensor], layers: list[int], block_size: int) -> dict[str, Any]:
    """Shares of blocks, in 16 bits: of all layers and heads together, `(N,)`, and of each query head, `(H, N)`."""

    def of_blocks(x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, -x.shape[-1] % block_size)).unflatten(-1, (-1, block_size)).sum(-1)

    mean = torch.stack(attentions).mean((0, 1))
    values, tokens = mean.topk(min(TOKENS_READ, len(mean)))
    return {
        "mean": encode(quantize(of_blocks(mean).numpy(), 16)),
        "layers": [encode(quantize(of_blocks(attentions[number]).numpy(), 16)) for number in layers],
        "tokens": [[token, round(value, 6)] for token, value in zip(tokens.tolist(), values.tolist())],
    }
