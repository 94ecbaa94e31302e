# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Sparse Sinkhorn Attention for other people's models (design section 11). Importing this module registers `"sinkhorn"`
with the library's `AttentionInterface` and `AttentionMaskInterface`:

    import interface_sinkhorn

    model = AutoModel.from_pretrained("answerdotai/ModernBERT-base", attn_implementation="sinkhorn")
    model.config.sinkhorn_attention = {"num_sorted_blocks": 8}  # optional; what is left out has its default

A model whose attention goes through these interfaces reads so with the weights that it has: its own queries and keys
choose the blocks (`sort_net="keys"`, section 9.3). The attention is that of this repository's models, without their
projections; this module lays out the batch, and refuses what would be wrong.

Beside the model: no folder with weights needs this module. Shape letters as in `layout_sinkhorn.py`.
"""

import difflib
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask


try:  # any package
    from .attention_sinkhorn import SinkhornAttention
    from .base_attention_sinkhorn import ProjectedBlocks
    from .compatibility_sinkhorn import is_exporting
    from .configuration_sinkhorn import SinkhornConfig, describe_error
    from .layout_sinkhorn import BlockLayout, LayoutInputs, block_layout
    from .rotary_sinkhorn import NO_ROTATION
    from .sorting_sinkhorn import BlockGrid, block_grid, from_blocks, local_offsets, to_blocks
    from .token_attention_sinkhorn import SinkhornTokenAttention
except ImportError:  # flat modules, as installed
    from attention_sinkhorn import SinkhornAttention
    from base_attention_sinkhorn import ProjectedBlocks
    from compatibility_sinkhorn import is_exporting
    from configuration_sinkhorn import SinkhornConfig, describe_error
    from layout_sinkhorn import BlockLayout, LayoutInputs, block_layout
    from rotary_sinkhorn import NO_ROTATION
    from sorting_sinkhorn import BlockGrid, block_grid, from_blocks, local_offsets, to_blocks
    from token_attention_sinkhorn import SinkhornTokenAttention


NAME = "sinkhorn"  # of the attention implementation
FIELD = "sinkhorn_attention"  # of a model's configuration
WINDOW_BLOCK = 64  # tokens of the smallest blocks of a layer with a sliding window: smaller ones are slower
MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # numbers of rows, heads, queries and keys to bool
# What a model can have that this attention does not compute, as arguments of its attention.
UNSUPPORTED_ARGUMENTS = {
    "position_bias": "a bias of relative positions",
    "softcap": "capped attention logits",
    "s_aux": "learned attention sinks",
}


class InterfaceError(ValueError):
    """A model or an input that this attention would compute wrongly, or a setting that it does not know."""


class Settings(NamedTuple):
    """
    The fields of `config.sinkhorn_attention`. They mean what they mean in `SinkhornConfig`, which does not have
    `num_global_blocks`: the first blocks of the text, whose own queries read everything in both directions. A class is
    read from the first token and a question stands at the start, so these need all the text and not a few blocks of it.
    In a decoder the first blocks have nothing else to read anyway.
    """

    block_size: int = 64
    num_sorted_blocks: int = 4
    num_local_blocks: int = 2
    num_sink_blocks: int = 1
    num_global_blocks: int = 1
    sort_granularity: str = "block"
    sinkhorn_iterations: int = 0

    @property
    def whole_length(self) -> int:
        """Tokens up to which every query reads every block, in both directions."""
        return (self.num_sorted_blocks + max(self.num_local_blocks, self.num_sink_blocks)) * self.block_size


class SparseMask(NamedTuple):
    """What the models of the library hand from their mask to each layer, in the place of a mask."""

    layout: BlockLayout
    settings: Settings  # of a layer with a sliding window: blocks that hold the window
    layer_type: str
    causal: bool


# Settings -------------------------------------------------------------------------------------------------------------


def attention_settings(config: PreTrainedConfig) -> Settings:
    """
    The settings of a model, by its configuration.

    Raises:
        InterfaceError: `config.sinkhorn_attention` has an unknown field, or a value that cannot be.
    """
    given = getattr(config, FIELD, None) or {}
    if not isinstance(given, dict):
        raise InterfaceError(
            f"`config.{FIELD}` must be a dict with fields of {list(Settings._fields)}, got {given!r}."
        )
    defaults = Settings()
    for name, value in given.items():
        if name not in Settings._fields:
            close = difflib.get_close_matches(str(name), Settings._fields, 1)
            hint = f"Did you mean '{close[0]}'?" if close else f"There are {list(Settings._fields)}."
            raise InterfaceError(f"`config.{FIELD}` has no field {name!r}. {hint}")
        kind = type(getattr(defaults, name))
        if type(value) is not kind:
            raise InterfaceError(f"`{name}` of `config.{FIELD}` must be {kind.__name__}, got {value!r}.")
    settings = Settings(**given)
    if settings.num_global_blocks < 0:
        raise InterfaceError(
            f"`config.{FIELD}` cannot be: `num_global_blocks` must be at least 0, got {settings.num_global_blocks}."
        )
    _sinkhorn_config(settings)
    return settings


@lru_cache(maxsize=256)
def _sinkhorn_config(
    settings: Settings,
    causal: bool = False,
    num_heads: int = 1,
    num_groups: int = 1,
    head_dim: int = 2,
    dropout: float = 0.0,
    layer_type: str = "sinkhorn_attention",
) -> SinkhornConfig:
    """
    The configuration of one of our models with such an attention.

    Raises:
        InterfaceError: there is none.
    """
    fields = settings._asdict()
    del fields["num_global_blocks"]
    try:
        return SinkhornConfig(
            **fields,
            hidden_size=num_heads * head_dim,
            num_attention_heads=num_heads,
            num_key_value_heads=num_groups,
            head_dim=head_dim,
            attention_dropout=dropout,
            is_decoder=causal,
            num_hidden_layers=1,
            layer_types=[layer_type],
            sort_net="keys",
            sort_assignment="hard",
            key_piece_size=math.gcd(settings.block_size, SinkhornConfig.key_piece_size),
            causal_balancing="capacity",
            gumbel_noise=False,
            attn_implementation="sdpa",
        )
    except StrictDataclassError as error:
        raise InterfaceError(f"`config.{FIELD}` cannot be: {describe_error(error)}") from error


@lru_cache(maxsize=256)
def _attention(*arguments: Any) -> SinkhornAttention:
    """The attention of such a configuration. Without parameters: those of its projections are never made."""
    config = _sinkhorn_config(*arguments)
    by_token = config.sort_granularity == "token" and config.layer_types[0] == "sinkhorn_attention"
    with torch.device("meta"):
        return (SinkhornTokenAttention if by_token else SinkhornAttention)(config, 0)


# Masks ----------------------------------------------------------------------------------------------------------------


def sinkhorn_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    config: PreTrainedConfig | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> SparseMask | Tensor | None:
    """
    What stands for a mask in the layers of one forward pass; the library calls it once for each kind of layer.

    Args:
        attention_mask: `(B, keys)` bool, `False` at padding.
        local_size: the window of sliding layers; `None` for layers that see everything.

    Returns:
        The layout of the batch, in which nothing has `L * L` entries. Where few tokens are new, the mask of the
        library's SDPA, which is used then: inputs that would be read whole, steps of decoding, windows as long as the
        input.

    Raises:
        InterfaceError: what the model masks cannot be kept.
    """
    settings = attention_settings(config)
    _refuse_configuration(config)
    if mask_function is bidirectional_mask_function and q_length != kv_length:
        raise InterfaceError(
            f"Queries of {q_length} tokens and keys of {kv_length} others are cross attention, or a prefix. Both are "
            "unsupported here: use `attn_implementation='sdpa'`."
        )
    reach = None if local_size is None else _window_settings(local_size)
    if q_length <= settings.whole_length or (reach and reach.num_local_blocks * reach.block_size >= q_length):
        return sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            local_size=local_size,
            use_vmap=use_vmap,
            device=device,
            **kwargs,
        )
    if use_vmap:
        raise InterfaceError("The model adds a mask of its own to the usual one: use `attn_implementation='sdpa'`.")
    if int(q_offset) != 0:
        raise InterfaceError(
            f"{q_length} new tokens continue a cache of {int(q_offset)}. At most {settings.whole_length} can (they "
            "read everything): give the whole prompt at once, or convert the model (`scripts/convert_checkpoint.py`)."
        )
    if kv_length != q_length:  # it has room after the prompt; masks for it are made by `generate`, which needs tensors
        raise InterfaceError(
            f"A prompt of {q_length} tokens is too long for a cache of fixed size (at most {settings.whole_length} "
            "here): use the cache that grows, or convert the model (`scripts/convert_checkpoint.py`)."
        )
    rows = torch.arange(batch_size, device=device).unsqueeze(-1)
    if is_exporting():  # nothing can be asked; only what makes masks for both directions has this argument
        causal, documents = "allow_is_bidirectional_skip" not in kwargs, None
    else:
        if attention_mask is not None and bool(attention_mask.all()):
            attention_mask = None
        causal, documents = _direction(mask_function, rows, q_length, is_window=reach is not None)
    if reach is not None:
        layout = _window_layout(mask_function, rows, q_length, attention_mask, reach, causal)
        return SparseMask(layout, reach, "local_attention", causal)
    inputs = LayoutInputs((batch_size, q_length), device, attention_mask, documents=documents)
    return SparseMask(_layout(settings, causal, inputs), settings, "sinkhorn_attention", causal)


def _layout(settings: Settings, causal: bool, inputs: LayoutInputs) -> BlockLayout:
    return block_layout(_sinkhorn_config(settings, causal), inputs, None)


def _direction(mask_function: MaskFunction, rows: Tensor, length: int, is_window: bool) -> tuple[bool, Tensor | None]:
    """
    What a mask function lets a token see: whether only those before it, and the number of each token's document
    `(B, L)`; `None` where a row is one. Asked at a few places of each row, since a function does not say what it is.

    Raises:
        InterfaceError: it is something else.
    """
    if mask_function is bidirectional_mask_function:
        return False, None
    if mask_function is causal_mask_function:
        return True, None
    head = rows.new_zeros(())
    token = torch.arange(1, length, device=rows.device).unsqueeze(0)
    sees_next, sees_previous = mask_function(rows, head, token - 1, token), mask_function(rows, head, token, token - 1)
    causal = not bool(sees_next.any())
    if is_window and (causal or bool(sees_next.all())):
        return causal, None
    if causal:
        document = nn.functional.pad((~sees_previous).expand(rows.shape[0], -1).cumsum(-1), (1, 0))
        first = torch.searchsorted(document, document)  # the first token of each one's document
        every = torch.arange(length, device=rows.device).unsqueeze(0)
        if bool(mask_function(rows, head, every, first).all()):
            return True, document if bool(document.any()) else None
    raise InterfaceError(
        "The model's mask is none of: everything, everything before, a sliding window, packed documents. Use "
        "`attn_implementation='sdpa'`."
    )


def _window_settings(local_size: int) -> Settings:
    """Blocks that hold a sliding window: few enough that they are not much longer, large enough to be few."""
    block_size = max(WINDOW_BLOCK, -(-local_size // 2))
    return Settings(block_size, num_local_blocks=1 - (-local_size // block_size), num_sink_blocks=0)


def _window_layout(
    mask_function: MaskFunction,
    rows: Tensor,
    length: int,
    attention_mask: Tensor | None,
    settings: Settings,
    causal: bool,
) -> BlockLayout:
    """Blocks of tokens, padding included, and of the library's mask the part that stands in them."""
    device, b = rows.device, settings.block_size
    grid = block_grid(length, b, None, device)
    offsets = local_offsets(settings.num_local_blocks, causal)
    query = torch.arange(grid.num_blocks * b, device=device).view(1, -1, b, 1)
    key = query[:, :, :1] + torch.arange(offsets.start * b, offsets.stop * b, device=device)  # (1, N, 1, K)
    exists = (key >= 0) & (key < length)
    query, key = query.clamp(max=length - 1), key.clamp(0, length - 1)
    # Of one row for all, unless they differ.
    mask = mask_function(rows.view(-1, 1, 1, 1), rows.new_zeros(()), query, key) & exists
    if attention_mask is not None:
        mask = mask & attention_mask[rows.view(-1, 1, 1, 1), key]
    empty = BlockLayout._make([None] * len(BlockLayout._fields))
    return empty._replace(grid=grid, tables=NO_ROTATION, sorted_tables=NO_ROTATION, local_mask=mask)


# Attention ------------------------------------------------------------------------------------------------------------


def sinkhorn_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: SparseMask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """
    Sparse Sinkhorn Attention in the place of a model's own. The library calls it once for each layer.

    Args:
        module: the attention of the layer, with its `config`.
        query: `(B, H, L, D)`, rotated where the model rotates.
        key, value: `(B, G, L, D)`.
        attention_mask: of `sinkhorn_mask`; `None` where the model makes no mask.
        scaling: of the logits; `D**-0.5` by default.
        is_causal: whether a missing mask means the causal one; what the module says by default.

    Returns:
        The output `(B, L, H, D)`, and `None` for the maps.

    Raises:
        InterfaceError: the layer or the input is unsupported.
    """
    _refuse_layer(module, kwargs)
    if not isinstance(attention_mask, SparseMask):
        settings = attention_settings(module.config)
        num_tokens, num_keys = query.shape[2], key.shape[2]
        if num_tokens <= settings.whole_length or kwargs.get("sliding_window") is not None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
            )
        if attention_mask is not None:
            raise InterfaceError(
                f"A mask {tuple(attention_mask.shape)} for each query and key is unsupported: give an `attention_mask` "
                "`(B, L)` of the tokens that are no padding, or use `attn_implementation='sdpa'`."
            )
        if num_tokens != num_keys:
            raise InterfaceError(
                f"Queries of {num_tokens} tokens and keys of {num_keys} without a mask are unsupported (cross "
                "attention?): use `attn_implementation='sdpa'`."
            )
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        layout = _layout(settings, causal, LayoutInputs((query.shape[0], num_tokens), query.device))
        attention_mask = SparseMask(layout, settings, "sinkhorn_attention", causal)
    return _attend(query, key, value, attention_mask, dropout, scaling), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: SparseMask, dropout: float, scaling: float | None
) -> Tensor:
    """`query` `(B, H, L, D)`, `key` and `value` `(B, G, L, D)`. Returns `(B, L, H, D)`."""
    grid, (heads, num_tokens, width) = mask.layout.grid, query.shape[1:]
    if num_tokens != grid.num_tokens or value.shape[2:] != (num_tokens, width):
        raise InterfaceError(
            f"Queries {tuple(query.shape)} and values {tuple(value.shape)} do not fit a mask of {grid.num_tokens} "
            "tokens: a prefix before the keys, and values of another width, are unsupported."
        )
    if scaling is not None and scaling != width**-0.5:
        query = query * (scaling * width**0.5)  # ours is fixed
    attention = _attention(mask.settings, mask.causal, heads, key.shape[1], width, dropout, mask.layer_type)
    blocks = [to_blocks(x.transpose(1, 2), grid) for x in (query, key, value)]
    # What is compared are queries and keys, so the input of the layer is not needed.
    output, _, _ = attention.attend_to_rows(ProjectedBlocks(blocks[0], *blocks), mask.layout, False, False)
    num_global = min(mask.settings.num_global_blocks, grid.num_blocks)
    if num_global and attention.sorts and not mask.causal:
        everything = _attend_to_everything(attention, blocks, num_global, grid)
        output = torch.cat((everything, output[:, num_global:]), 1)
    return from_blocks(output.flatten(-2), grid).unflatten(-1, (heads, width))


def _attend_to_everything(
    attention: SinkhornAttention, blocks: list[Tensor], num_queries: int, grid: BlockGrid
) -> Tensor:
    """The output `(B, num_queries, b, H, D)` of the first blocks. `blocks` are queries, keys and values `(B, N, b, *, D)`."""
    query = blocks[0][:, :num_queries].flatten(1, 2)
    key, value = (x.flatten(1, 2).transpose(1, 2) for x in blocks[1:])
    mask = None if grid.filled is None else grid.filled.flatten(1)[:, None, None, :]
    return attention.attend(query, key, value, mask, maps=False)[0].unflatten(1, (num_queries, grid.block_size))


# Refusals -------------------------------------------------------------------------------------------------------------


def _refuse_configuration(config: PreTrainedConfig) -> None:
    if config.model_type == "sinkhorn":
        raise InterfaceError("A Sinkhorn model has this attention of its own: use `attn_implementation='sdpa'`.")
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
        raise InterfaceError(
            f"Cross attention is unsupported, and this `{config.model_type}` model has it: use "
            "`attn_implementation='sdpa'`, or an encoder or a decoder alone."
        )


def _refuse_layer(module: nn.Module, kwargs: dict[str, Any]) -> None:
    name = type(module).__name__
    config = getattr(module, "config", None)
    if config is None:
        raise InterfaceError(f"{name} has no `config` that settings could stand in: it is unsupported.")
    _refuse_configuration(config)
    if "Cross" in name or getattr(module, "is_cross_attention", False):
        raise InterfaceError(f"Cross attention ({name}) is unsupported: use `attn_implementation='sdpa'`.")
    if kwargs.get("output_attentions"):
        raise InterfaceError(
            "`output_attentions=True` is unsupported: only `attn_implementation='eager'` has attention maps."
        )
    for argument, meaning in UNSUPPORTED_ARGUMENTS.items():
        if kwargs.get(argument) is not None:
            raise InterfaceError(f"{name} has {meaning}, unsupported here: use `attn_implementation='sdpa'`.")


AttentionInterface.register(NAME, sinkhorn_attention_forward)
AttentionMaskInterface.register(NAME, sinkhorn_mask)
