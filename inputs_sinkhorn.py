# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
What a forward refuses, and what it learns from its inputs before it runs: each error says what to give instead.

On a GPU each value that is read here waits for the device, and while tracing none may be read. In eager mode there are
these: whether a mask masks anything (as the library's own mask functions ask too), whether given positions start
again, and whether the mask of a cache is still the one it was filled with.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils.import_utils import is_tracing


try:  # a folder on the Hub, or any package
    from .cached_layout_sinkhorn import cached_block_layout
    from .compatibility_sinkhorn import is_exporting
    from .layout_sinkhorn import (
        Layout,
        LayoutInputs,
        Rotary,
        block_layout,
        fixed_length,
        sorts,
        token_layout,
    )
    from .sorting_sinkhorn import block_grid, document_lengths
except ImportError:  # flat modules, as installed
    from cached_layout_sinkhorn import cached_block_layout
    from compatibility_sinkhorn import is_exporting
    from layout_sinkhorn import (
        Layout,
        LayoutInputs,
        Rotary,
        block_layout,
        fixed_length,
        sorts,
        token_layout,
    )
    from sorting_sinkhorn import block_grid, document_lengths


def check_arguments(
    config: Any,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    position_ids: Tensor | None,
    is_causal: bool | None,
) -> None:
    """Raises where there is no row, no token, or not one position for each new token."""
    if is_causal not in (None, config.is_decoder):
        raise ValueError(
            f"`is_causal` differs from `config.is_decoder={config.is_decoder}`, which decides about the sorting too: "
            "make a model with the other `is_decoder`."
        )
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
    if input_ids is not None and input_ids.dim() != 2:
        raise ValueError(
            f"`input_ids` has shape {tuple(input_ids.shape)}: give (batch, tokens); one row is `input_ids[None]`."
        )
    batch, num_tokens = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
    if 0 in (batch, num_tokens):
        raise ValueError(f"The input has shape {(batch, num_tokens)}: give at least one row and token.")
    if position_ids is None or is_tracing(position_ids):  # while tracing, sizes cannot be compared
        return
    if position_ids.shape not in ((batch, num_tokens), (1, num_tokens)):
        raise ValueError(
            f"`position_ids` has shape {tuple(position_ids.shape)}, but the input needs {(batch, num_tokens)} or "
            f"{(1, num_tokens)}: one position for each of these tokens, none for those in a cache."
        )


def check_mask(
    attention_mask: Tensor | None, batch: int, num_tokens: int, past_length: int | Tensor, max_length: int | None
) -> Tensor | None:
    """
    The mask of the tokens so far, or `None` where it masks nothing; while tracing, of the given length. Raises where it
    is not one 0 or 1 per token. With a cache of fixed size it may have the `max_length` of that: then every step has
    the same shapes, and the end says nothing.
    """
    if attention_mask is None:
        return None
    expected = (batch, num_tokens + past_length)
    if attention_mask.dim() == 2 and is_tracing(attention_mask):
        # What is read below would be a constant of the graph.
        if max_length is None:
            return attention_mask
        token = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        return (attention_mask != 0) & (token < num_tokens + past_length)
    if max_length is not None and attention_mask.shape == (batch, max_length):
        attention_mask = attention_mask[:, : expected[1]]
    if attention_mask.dim() != 2 or attention_mask.shape != expected:
        in_cache = f" of each row, the {past_length} in the cache included" if past_length else " of each row"
        raise ValueError(
            f"`attention_mask` has shape {tuple(attention_mask.shape)}, but the input needs {expected}: one 0 "
            f"(padding) or 1 per token{in_cache}."
        )
    if attention_mask.is_floating_point() and bool(((attention_mask != 0) & (attention_mask != 1)).any()):
        raise ValueError(
            "`attention_mask` holds numbers other than 0 (padding) and 1: give what the tokenizer gives, not a mask "
            "to be added to scores."
        )
    return None if bool(attention_mask.all()) else attention_mask


def count_past_tokens(attention_mask: Tensor | None, past_length: int | Tensor, inputs_embeds: Tensor) -> Tensor:
    """`(B,)`: the real tokens of each row in a cache that holds `past_length` with padding."""
    batch, num_tokens = inputs_embeds.shape[:2]
    if attention_mask is None:
        return torch.zeros(batch, dtype=torch.long, device=inputs_embeds.device) + past_length
    is_real = attention_mask != 0
    if isinstance(past_length, Tensor):
        return (is_real & (torch.arange(is_real.shape[1], device=is_real.device) < past_length)).sum(-1)
    return is_real[:, :-num_tokens].sum(-1)


def check_cache(cache: Cache, layer_types: list[str], past_counts: Tensor) -> None:
    """
    Raises `ValueError` where a cache cannot go with a model of these layers, or with these inputs.

    Args:
        past_counts: `(B,)`, the real tokens of each row in the cache, by the mask of this pass.
    """
    if set(layer_types) == {"full_attention"}:
        return  # the library's own layers, which check themselves
    is_ours = [hasattr(layer, "make_room") for layer in cache.layers]
    expected = [layer_type != "full_attention" for layer_type in layer_types]
    if is_ours != expected or getattr(cache, "offloading", False):
        raise ValueError(
            f"The model has layers of its own kinds of cache, and {cache!r} is not made for them: make it with "
            "`DynamicCache(config=model.config)` or `StaticCache(config=model.config, max_cache_len=...)`, without "
            "offloading. (Prefix tuning by PEFT fills a cache with keys and values of its own, which layers that sort "
            "cannot use: it is not supported.)"
        )
    lengths = [int(layer.get_seq_length()) for layer in cache.layers]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"The layers of the cache hold {lengths} tokens: a `crop` was refused on the way; `reset()` it."
        )
    layer = next((layer for layer, ours in zip(cache.layers, is_ours) if ours and layer.is_initialized), None)
    if layer is None or lengths[0] == 0:
        return
    if layer.counts.shape[0] != past_counts.shape[0]:
        raise ValueError(
            f"The cache holds {len(layer.counts)} rows, but {len(past_counts)} are given: bring it to as many by "
            "`batch_select_indices` or `batch_repeat_interleave`, or start a new one."
        )
    # After a `crop` the counts are known again only with this pass.
    if layer.cropped_tokens == 0 and bool((past_counts.to(layer.counts.device) != layer.counts).any()):
        raise ValueError(
            f"`attention_mask` has {past_counts.tolist()} real tokens in the rows of the cache, which was filled with "
            f"{layer.counts.tolist()}: give past tokens the mask that they were read with."
        )


def check_exported_cache(cache: Cache) -> None:
    """Raises `ValueError` where a cache that grows is an input of a graph that is exported, which cannot work."""
    ours = (layer for layer in cache.layers if hasattr(layer, "make_room") and not hasattr(layer, "max_cache_len"))
    if is_exporting() and any(layer.get_seq_length() > 0 for layer in ours):
        raise ValueError(
            "A graph is exported with a `DynamicCache` that holds tokens, whose number would be a constant of the "
            "graph: make the cache with `StaticCache(config=model.config, max_cache_len=...)`, and give an "
            "`attention_mask` of its length."
        )


def documents_of(position_ids: Tensor) -> Tensor | None:
    """
    `(B, L)`: the document of each token of packed rows, which begin where positions do not grow; `None` where they
    always do.
    """
    restarts = position_ids.diff(dim=-1) <= 0
    if not bool(restarts.any()):
        return None
    return nn.functional.pad(restarts.long().cumsum(-1), (1, 0))


def packed_documents(position_ids: Tensor, layer_types: Collection[str] = ()) -> Tensor | None:
    """`documents_of`; while tracing a check that each row is one document, as their number would be a shape."""
    if is_tracing(position_ids):
        # Torch has no public way to assert in a graph what values a tensor has.
        torch._assert_async(
            (position_ids.diff(dim=-1) > 0).all(),
            "Packed rows (`position_ids` that start again) cannot be read by a compiled or exported model.",
        )
        return None
    documents = documents_of(position_ids)
    if documents is not None and "sortcut_attention" in layer_types:
        raise ValueError(
            "'sortcut_attention' reads the same sorted blocks everywhere in a row, so it cannot read packed rows "
            "(`position_ids` that start again): give each document a row of its own, with an `attention_mask`."
        )
    return documents


def check_one_document(position_ids: Tensor) -> None:
    """Raises where a row holds several documents, for a model that gives one prediction a row."""
    if packed_documents(position_ids) is not None:
        raise ValueError(
            "`position_ids` start again, so a row holds several documents, but this model gives one "
            "prediction a row: give each document a row of its own, with an `attention_mask`."
        )


def cache_to_use(
    config: Any, cache: Cache | None, use_cache: bool | None, is_training: bool, recomputes: bool
) -> Cache | None:
    """
    The cache given, or a new one where it is asked for.

    Args:
        recomputes: whether layers run a second time, for the backward pass.
    """
    if not config.is_decoder:
        if cache is not None:
            raise ValueError("`cache` needs a decoder: use a config with `is_decoder=True`.")
        return None
    if recomputes and cache is not None:
        raise ValueError(
            "`cache` cannot be used under activation checkpointing, which runs layers twice: leave it "
            "out (`generate(use_cache=False)`), or call `model.activation_checkpointing_disable()` or "
            "`model.eval()`."
        )
    # Training reads whole rows: a cache would only cost.
    if cache is None and use_cache and not is_training:
        return DynamicCache(config=config)
    return cache


def layout_inputs(
    config: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    documents: Tensor | None,
    cache: Cache | None,
) -> LayoutInputs:
    """What the layout of a batch is made of. Raises where the mask or the cache does not go with it."""
    batch, num_tokens = inputs_embeds.shape[:2]
    past_length = 0 if cache is None else cache.get_seq_length()
    if isinstance(past_length, Tensor) and not is_tracing(past_length):
        past_length = int(past_length)
    attention_mask = check_mask(attention_mask, batch, num_tokens, past_length, fixed_length(cache))
    past_counts = None
    if cache is not None:
        past_counts = count_past_tokens(attention_mask, past_length, inputs_embeds)
        if is_tracing(inputs_embeds):
            check_exported_cache(cache)
        else:
            check_cache(cache, config.layer_types, past_counts)
    return LayoutInputs(
        shape=(batch, num_tokens),
        device=inputs_embeds.device,
        attention_mask=attention_mask,
        position_ids=position_ids,
        documents=None if documents is None else documents.expand(batch, -1),
        past_length=past_length,
        past_counts=past_counts,
    )


def make_layout(
    config: Any,
    inputs: LayoutInputs,
    rotary: Rotary,
    cache: Any | None = None,
    maps: bool = False,
    may_read_values: bool = True,
) -> Layout:
    """
    Args:
        cache: holds `inputs.past_length` tokens per row.
        maps: whether attention maps will be returned.
        may_read_values: whether values of tensors may be read back, to check them and to skip needless work. Not while
            tracing.
    """
    _, num_tokens = inputs.shape
    layers, max_length = cache.layers if cache is not None else [], fixed_length(cache)
    if may_read_values:
        past_length = inputs.past_length
        if max_length is not None and past_length + num_tokens > max_length:
            raise ValueError(
                f"The static cache has room for {max_length} tokens, and {past_length} + {num_tokens} are given: make "
                "it with a larger `max_cache_len`."
            )
        longest = past_length + num_tokens
        if inputs.documents is not None:
            longest = int(document_lengths(inputs.documents).max())
        check_number_of_blocks(config, longest)
    blocks = tokens = None
    if set(config.layer_types) != {"full_attention"}:
        if cache is None:
            blocks = block_layout(config, inputs, rotary)
        else:
            blocks = cached_block_layout(config, inputs, rotary, layers, max_length, may_read_values)
            if maps:
                key_length = inputs.past_length + num_tokens
                key_grid = block_grid(key_length, config.block_size, inputs.attention_mask, inputs.device)
                blocks = blocks._replace(key_grid=key_grid)
    if "full_attention" in config.layer_types:
        tokens = token_layout(config, inputs, rotary, max_length)
    return Layout(blocks, tokens)


def check_number_of_blocks(config: Any, num_tokens: int) -> None:
    """Raises where a SortNet of fixed size has no outputs for that many blocks."""
    num_blocks = -(-num_tokens // config.block_size)
    if sorts(config) and config.sort_net in ("linear", "mlp") and num_blocks > config.max_num_blocks:
        raise ValueError(
            f"The input has {num_blocks} blocks of {config.block_size} tokens, but a '{config.sort_net}' SortNet has "
            f"outputs for {config.max_num_blocks} (max_position_embeddings={config.max_position_embeddings} // "
            f"block_size={config.block_size}). Shorten the input, or train with a larger `max_position_embeddings` or "
            "`sort_net='bilinear'`."
        )
