# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Checks before `benchmark.py` reports any speed: small versions of the variants compute what they should. In float64,
where only a mistake exceeds the limit.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sorted_blocks_sinkhorn
from benchmarking.models import FULL_ATTENTION, SINKHORN_VARIANTS, sinkhorn_config
from benchmarking.passes import enable_checkpointing
from modeling_sinkhorn import SinkhornModel


BLOCK, HEADS = 8, 4
SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "block_size": BLOCK,
    "key_piece_size": BLOCK // 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # so that neither attention nor sorting is close to uniform
}
NUM_TOKENS = 45  # so that the last block is partly filled
MANY_TOKENS = 581  # more than a kernel may process in one piece
LIMIT = 1e-9


class Check(NamedTuple):
    measure: Callable[[str, str], float]  # from the variant's name and the device to the largest error
    applies: Callable[[str], bool]
    limit: float
    failure: str  # what is wrong where it fails


def check_all(variants: Iterable[str] = tuple(SINKHORN_VARIANTS), device: str = "cpu") -> dict[str, dict[str, float]]:
    """The largest error of each check, for each variant. Raises SystemExit where one is above its limit."""
    errors: dict[str, dict[str, float]] = {}
    for variant in variants:
        errors[variant] = {}
        for name, check in CHECKS.items():
            if check.applies(variant):
                error = check.measure(variant, device)
                if not error <= check.limit:  # NaN is not
                    raise SystemExit(f"error: {variant}: {check.failure} (by {error:.3g}); no speed is given.")
                errors[variant][name] = error
    return errors


def small_model(variant: str, device: str, **overrides: Any) -> SinkhornModel:
    torch.manual_seed(0)
    return SinkhornModel(sinkhorn_config(variant, **(SMALL | overrides))).to(device, torch.double).eval()


def tokens(*shape: int, device: str) -> Tensor:
    return torch.randint(5, SMALL["vocab_size"], shape, generator=torch.Generator().manual_seed(1)).to(device)


def relative(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected entry."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def largest(errors: Iterable[float]) -> float:
    """The largest, or NaN if any is NaN, which `max` may miss."""
    return torch.tensor(list(errors), dtype=torch.double).max().item()


def parameter_gradients(model: SinkhornModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """All gradients of a loss as one vector (0 if there is none), in training mode with seeded noise."""
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.manual_seed(3)
    model(ids, attention_mask=mask).last_hidden_state[..., 0].square().sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def _causal(variant: str) -> bool:
    return SINKHORN_VARIANTS[variant].get("is_decoder", False)


def _sorts(variant: str) -> bool:
    return not {"local_attention", "full_attention"} & set(SINKHORN_VARIANTS[variant].get("layer_types", []))


def _by_token(variant: str) -> bool:
    return SINKHORN_VARIANTS[variant].get("sort_granularity") == "token"


def _has_sort_net(variant: str) -> bool:
    """With parameters."""
    return _sorts(variant) and SINKHORN_VARIANTS[variant].get("sort_net") != "keys"


def _is_full(variant: str) -> bool:
    return "full_attention" in SINKHORN_VARIANTS[variant].get("layer_types", [])


# Checks --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def implementations(variant: str, device: str) -> float:
    """The outputs of "sdpa" equal those of "eager", in a padded batch and in a row of many blocks."""
    mask = torch.ones(2, NUM_TOKENS, device=device)
    mask[1, 30:] = 0
    sdpa, eager = (small_model(variant, device, attn_implementation=name) for name in ("sdpa", "eager"))
    return largest(
        relative(*(model(ids, attention_mask=mask).last_hidden_state for model in (sdpa, eager)))
        for ids, mask in ((tokens(2, NUM_TOKENS, device=device), mask), (tokens(1, MANY_TOKENS, device=device), None))
    )


def gradients(variant: str, device: str) -> float:
    """The same for the gradients of all parameters, in training with the same noise."""
    mask = torch.ones(2, NUM_TOKENS, device=device)
    mask[1, 30:] = 0
    sdpa, eager = (small_model(variant, device, attn_implementation=name) for name in ("sdpa", "eager"))
    return largest(
        relative(*(parameter_gradients(model, ids, mask) for model in (sdpa, eager)))
        for ids, mask in ((tokens(2, NUM_TOKENS, device=device), mask), (tokens(1, MANY_TOKENS, device=device), None))
    )


@torch.no_grad()
def padding(variant: str, device: str) -> float:
    """A row gives the same in a left- or right-padded batch as alone."""
    model, lengths = small_model(variant, device), (NUM_TOKENS, 29, BLOCK, 3)
    rows = [tokens(1, length, device=device) for length in lengths]
    errors = []
    for left in (True, False):
        places = [slice(NUM_TOKENS - length, None) if left else slice(length) for length in lengths]
        ids = torch.zeros(len(rows), NUM_TOKENS, dtype=torch.long, device=device)
        mask = torch.zeros_like(ids)
        for number, (row, place) in enumerate(zip(rows, places)):
            ids[number, place], mask[number, place] = row[0], 1
        together = model(ids, attention_mask=mask).last_hidden_state
        for number, (row, place) in enumerate(zip(rows, places)):
            alone = model(row).last_hidden_state[0]
            errors.append(relative(together[number, place], alone))
    return largest(errors)


@torch.no_grad()
def packed(variant: str, device: str) -> float:
    """Documents packed in one row, separated by positions that restart, give the same as alone."""
    model = small_model(variant, device)
    rows = [tokens(1, length, device=device) for length in (29, 1, BLOCK, 3, 2 * BLOCK + 1)]
    positions = torch.cat([torch.arange(row.shape[1], device=device) for row in rows]).unsqueeze(0)
    together = model(torch.cat(rows, dim=1), position_ids=positions).last_hidden_state
    alone = torch.cat([model(row).last_hidden_state for row in rows], dim=1)
    return relative(together, alone)


@torch.no_grad()
def single_block(variant: str, device: str) -> float:
    """With one block there is nothing to sort: the result is dense attention (twice that for a mixture)."""
    model = small_model(variant, device)
    dense = small_model("causal full attention" if _causal(variant) else FULL_ATTENTION, device)
    dense.load_state_dict(model.state_dict(), strict=False)
    if variant == "mixture":
        for layer in dense.layers:
            layer.self_attn.o_proj.weight.mul_(2)
    rows = [tokens(1, length, device=device) for length in (1, BLOCK - 1, BLOCK)]
    return largest(relative(model(row).last_hidden_state, dense(row).last_hidden_state) for row in rows)


@torch.no_grad()
def maps(variant: str, device: str) -> float:
    """Each row of the source-token map sums to 1, and its weighted sum of values is the output of attention."""
    model = small_model(variant, device, attn_implementation="eager")
    seen: dict[str, Tensor] = {}
    attention = model.layers[-1].self_attn
    attention.v_proj.register_forward_hook(lambda module, inputs, output: seen.update(values=output))
    attention.o_proj.register_forward_pre_hook(lambda module, inputs: seen.update(attended=inputs[0]))
    attention_map = model(tokens(1, NUM_TOKENS, device=device), output_attentions=True).attentions[-1]  # (1, H, L, L)
    values, attended = (
        seen[name].reshape(1, -1, heads, SMALL["hidden_size"] // HEADS)[:, :NUM_TOKENS].transpose(1, 2)
        for name, heads in (("values", SMALL["num_key_value_heads"]), ("attended", HEADS))
    )
    values = values.repeat_interleave(HEADS // SMALL["num_key_value_heads"], dim=1)
    outputs_per_layer = 2 if variant == "mixture" else 1  # a mixture adds two, and its map is their mean
    of_values = relative(attention_map @ values * outputs_per_layer, attended)
    return largest([(attention_map.sum(-1) - 1).abs().max().item(), of_values])


@torch.no_grad()
def sort_matrices(variant: str, device: str) -> float:
    """Each row sums to 1, and is 0 at blocks that it may not choose. A causal one has none before the second block."""
    model, errors = small_model(variant, device), []
    config, source = model.config, torch.arange(-(-NUM_TOKENS // BLOCK), device=device)
    row = torch.arange(NUM_TOKENS, device=device) // BLOCK if _by_token(variant) else source
    # Of blocks that are read anyway, only a plan from tokens says nothing.
    distance, sinks = (config.num_local_blocks, config.num_sink_blocks) if _by_token(variant) else (1, 0)
    for matrix in model(tokens(1, NUM_TOKENS, device=device), output_sort_matrices=True).sort_matrices:
        sums = matrix.sum(-1)
        if _causal(variant):
            chosen = (source <= row.unsqueeze(-1) - distance) & (source >= sinks)
            errors.append(matrix.masked_fill(chosen, 0).abs().max().item())
            sums = sums[..., chosen.any(-1)]
        errors += [(sums - 1).abs().max().item(), -matrix.min().item()]
    return largest(errors)


@torch.no_grad()
def forced_permutation(variant: str, device: str) -> float:
    """With a permutation as sort matrix, sorted keys and values are exactly the blocks that it names."""
    order = torch.tensor([2, 0, 4, 1, 3], device=device)
    matrix = torch.eye(len(order), dtype=torch.double, device=device)[order].view(1, 1, len(order), len(order))
    generator = torch.Generator().manual_seed(0)
    errors = []
    for _ in ("keys", "values"):
        blocks = torch.randn(1, 1, len(order), BLOCK, 6, dtype=torch.double, generator=generator).to(device)
        if SINKHORN_VARIANTS[variant].get("sort_assignment") == "hard":
            choice = sorted_blocks_sinkhorn.hard_assignment(matrix, torch.ones_like(matrix, dtype=torch.bool), 1)
            moved = sorted_blocks_sinkhorn.hard_sort(choice, blocks).squeeze(3)
        else:
            moved = sorted_blocks_sinkhorn.soft_sort(matrix, blocks, None)
        errors.append(relative(moved, blocks.index_select(2, order)))
    return largest(errors)


def leak(variant: str, device: str) -> float:
    """The gradient of an output with respect to a later input is 0, in training with sorting noise."""
    model = small_model(variant, device).train()
    embeddings = model.embed_tokens(tokens(1, NUM_TOKENS, device=device)).detach().requires_grad_()
    outputs = model(inputs_embeds=embeddings).last_hidden_state
    errors = []
    for token in (0, BLOCK - 1, BLOCK, 3 * BLOCK + 2, NUM_TOKENS - 2):
        (gradient,) = torch.autograd.grad(outputs[0, token].sum(), embeddings, retain_graph=True)
        if not gradient[0, token].abs().max() > 0:  # otherwise the 0 of later ones proves nothing
            return float("nan")
        errors.append(gradient[0, token + 1 :].abs().max().item())
    return largest(errors)


def idle_sort_nets(variant: str, device: str) -> float:
    """The number of SortNet matrices without a finite gradient that is not 0."""
    model = small_model(variant, device)
    parameter_gradients(model, tokens(1, NUM_TOKENS, device=device))
    gradients = [parameter.grad for name, parameter in model.named_parameters() if ".sort_net." in name]
    assert gradients, f"{variant} has no SortNet"
    return float(sum(not (g.isfinite().all() and g.abs().max() > 0) for g in gradients))


def checkpointing(variant: str, device: str) -> float:
    """Gradients are the same with and without activation checkpointing, for the same noise."""
    plain, saving = small_model(variant, device), small_model(variant, device)
    enable_checkpointing(saving)
    return relative(*(parameter_gradients(model, tokens(1, NUM_TOKENS, device=device)) for model in (saving, plain)))


def _always(variant: str) -> bool:
    return True


CHECKS = {
    "implementations": Check(implementations, _always, LIMIT, "sdpa and eager attention differ"),
    "gradients": Check(gradients, _always, LIMIT, "the gradients of sdpa and eager attention differ"),
    "padding": Check(padding, _always, LIMIT, "a row of a padded batch differs from the row alone"),
    "packed": Check(packed, lambda v: v != "sortcut", LIMIT, "a packed document differs from the document alone"),
    "single_block": Check(single_block, lambda v: not _is_full(v), LIMIT, "one block differs from dense attention"),
    "maps": Check(
        maps, _always, LIMIT, "rows of attention maps do not sum to 1, or are not the weights of the values"
    ),
    "sort_matrices": Check(sort_matrices, _sorts, LIMIT, "rows of sort matrices do not sum to 1 or see later blocks"),
    "forced_permutation": Check(
        forced_permutation,
        lambda v: _sorts(v) and not _by_token(v),
        LIMIT,
        "a forced permutation does not move whole blocks",
    ),
    "leak": Check(leak, _causal, 0.0, "outputs depend on later tokens"),
    "idle_sort_nets": Check(idle_sort_nets, _has_sort_net, 0.0, "a SortNet gets no gradient"),
    "checkpointing": Check(checkpointing, _always, LIMIT, "activation checkpointing changes the gradients"),
}
