# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The Sinkhorn Transformer: a Llama-type block whose attention is Sparse Sinkhorn Attention (Tay et al., ICML 2020,
arXiv:2002.11296). Reads from top to bottom: what is made once per forward, the SortNet, attention, layer, model, heads.

Shape letters as in `sorting_sinkhorn.py`, and `E` hidden size, `H` query heads, `K` keys that a block attends to.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.generic import maybe_autocast, merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import OutputRecorder, capture_outputs


try:  # a folder on the Hub, or any package
    from .configuration_sinkhorn import SinkhornConfig
    from .sorting_sinkhorn import (
        BlockGrid,
        HardSort,
        allowed_pairs,
        block_descriptors,
        block_grid,
        block_means,
        causal_sinkhorn_balance,
        from_blocks,
        gumbel_noise,
        hard_assignment,
        hard_sort,
        local_offsets,
        local_window,
        nonempty_blocks,
        sinkhorn_balance,
        soft_sort,
        to_blocks,
    )
except ImportError:  # flat modules, as installed
    from configuration_sinkhorn import SinkhornConfig
    from sorting_sinkhorn import (
        BlockGrid,
        HardSort,
        allowed_pairs,
        block_descriptors,
        block_grid,
        block_means,
        causal_sinkhorn_balance,
        from_blocks,
        gumbel_noise,
        hard_assignment,
        hard_sort,
        local_offsets,
        local_window,
        nonempty_blocks,
        sinkhorn_balance,
        soft_sort,
        to_blocks,
    )


logger = logging.get_logger(__name__)


# --------------------------------------------------------------------------------------------------------------------
# Made once per forward
# --------------------------------------------------------------------------------------------------------------------


class BlockContext(NamedTuple):
    """What every layer needs to know about the batch. Masks are `None` where nothing is masked."""

    grid: BlockGrid
    allowed: Tensor | None  # (B or 1, 1, N, N) bool, pairs of blocks that sorting may join
    candidates: Tensor | None  # (B or 1, 1, N, N) bool, those of them that are not local already
    cos: Tensor  # (B or 1, N, b, D) rotary tables at each slot's true position
    sin: Tensor
    sorted_cos: Tensor  # (B or 1, N, b, D) the same where a softly sorted block is taken to stand
    sorted_sin: Tensor
    sorted_mask: Tensor | None  # (B or 1, N, b) bool, slots of a softly sorted block that hold anything
    local_mask: Tensor | None  # (B or 1, N, 1 or b, K_local) bool, local slots that a query of the block may see
    token_mask: Tensor | None  # (B, 1, 1 or N * b, N * b) bool, the same for full attention


def make_block_context(
    config: SinkhornConfig, rotary_emb: nn.Module, inputs_embeds: Tensor, attention_mask: Tensor | None, position_ids
) -> BlockContext:
    """Block grid, rotary tables and masks of a batch; see `BlockContext`."""
    num_tokens, device, causal = inputs_embeds.shape[1], inputs_embeds.device, config.is_decoder
    grid = block_grid(num_tokens, config.block_size, attention_mask, device)
    if position_ids is None:
        position_ids = torch.arange(num_tokens, device=device).unsqueeze(0)
        if grid.slot_of_token is not None:
            position_ids = grid.slot_of_token
    positions = to_blocks(position_ids, grid)
    slot = torch.arange(config.block_size, device=device)
    # A mixed block has no position of its own: it is taken to stand where the block it is sorted to stands, in a
    # decoder directly before the local blocks.
    sorted_positions = positions[..., :1] + slot
    if causal:
        sorted_positions = sorted_positions - config.num_local_blocks * config.block_size
    cos, sin = rotary_emb(inputs_embeds, positions.flatten(1))
    sorted_cos, sorted_sin = rotary_emb(inputs_embeds, sorted_positions.flatten(1))
    shape = (grid.num_blocks, config.block_size)

    allowed = allowed_pairs(grid, causal, device)
    return BlockContext(
        grid,
        allowed,
        _not_local(allowed, grid, config, device) if config.sort_assignment == "hard" else None,
        *(table.unflatten(1, shape) for table in (cos, sin, sorted_cos, sorted_sin)),
        _sorted_mask(grid, causal, device),
        _local_mask(grid, config, device),
        _token_mask(grid, causal, device),
    )


def _not_local(allowed: Tensor | None, grid: BlockGrid, config: SinkhornConfig, device: torch.device) -> Tensor:
    block = torch.arange(grid.num_blocks, device=device)
    distance = (block.unsqueeze(0) - block.unsqueeze(-1)).abs()
    far = (distance >= config.num_local_blocks).view(1, 1, *distance.shape)
    return far if allowed is None else allowed & far


def _sorted_mask(grid: BlockGrid, causal: bool, device: torch.device) -> Tensor | None:
    """A slot of a softly sorted block holds something if any source block fills it: block 0 fills the most."""
    if causal:
        # Only blocks before i are sources, and these are full; block 0 has none.
        has_past = torch.arange(grid.num_blocks, device=device) > 0
        return has_past.view(1, -1, 1).expand(-1, -1, grid.block_size)
    return None if grid.filled is None else grid.filled[:, :1].expand(-1, grid.num_blocks, -1)


def _local_mask(grid: BlockGrid, config: SinkhornConfig, device: torch.device) -> Tensor | None:
    offsets = local_offsets(config.num_local_blocks, config.is_decoder)
    if grid.filled is None and len(offsets) == 1 and not config.is_decoder:
        return None
    filled = grid.filled
    if filled is None:
        filled = torch.ones(1, grid.num_blocks, grid.block_size, dtype=torch.bool, device=device)
    mask = local_window(filled, offsets).unsqueeze(2)
    if not config.is_decoder:
        return mask
    slot = torch.arange(grid.block_size, device=device)
    key_slot = torch.arange(mask.shape[-1], device=device) - (len(offsets) - 1) * grid.block_size
    return mask & (key_slot.unsqueeze(0) <= slot.unsqueeze(-1))


def _token_mask(grid: BlockGrid, causal: bool, device: torch.device) -> Tensor | None:
    mask = None if grid.filled is None else grid.filled.flatten(1)[:, None, None, :]
    if causal:
        slot = torch.arange(grid.num_blocks * grid.block_size, device=device)
        earlier = (slot.unsqueeze(0) <= slot.unsqueeze(-1)).view(1, 1, *[slot.numel()] * 2)
        mask = earlier if mask is None else mask & earlier
    return mask


# --------------------------------------------------------------------------------------------------------------------
# Parts that Llama has too
# --------------------------------------------------------------------------------------------------------------------


class SinkhornRMSNorm(nn.Module):
    """Root mean square layer norm, computed in float32."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.promote_types(input_dtype, torch.float32))
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon)).to(input_dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


class SinkhornRotaryEmbedding(nn.Module):
    """Rotary position embeddings (RoPE), every variant of `rope_parameters` that the library knows."""

    def __init__(self, config: SinkhornConfig):
        super().__init__()
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        inv_freq, self.attention_scaling = self.rope_init_fn(config)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @property
    def rope_init_fn(self) -> Callable:
        if self.rope_type == "default":
            return self.compute_default_rope_parameters
        return ROPE_INIT_FUNCTIONS[self.rope_type]

    @staticmethod
    def compute_default_rope_parameters(config: SinkhornConfig, **kwargs: Any) -> tuple[Tensor, float]:
        """Inverse frequencies `(D / 2,)` and the scale of the tables, 1."""
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return config.rope_parameters["rope_theta"] ** -exponent, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, L)` positions to cosines and sines, `(B, L, D)` in the dtype of `x`."""
        with maybe_autocast(device_type=x.device.type, enabled=False):
            angles = position_ids.unsqueeze(-1).float() * self.inv_freq.to(x.device, torch.float)
            angles = torch.cat((angles, angles), dim=-1)
            cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates `x` by tables that broadcast to it."""
    return x * cos + rotate_half(x) * sin


class SinkhornMLP(nn.Module):
    """Gated feed-forward network."""

    def __init__(self, config: SinkhornConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


# --------------------------------------------------------------------------------------------------------------------
# Sorting
# --------------------------------------------------------------------------------------------------------------------


class SinkhornSortNet(nn.Module):
    """Learns which block belongs beside which: descriptors to logits to a balanced sort matrix (design 2.2 to 2.4)."""

    def __init__(self, config: SinkhornConfig):
        super().__init__()
        self.config = config
        if config.sort_net == "bilinear":
            width = config.num_key_value_heads * config.head_dim
            self.row_proj = nn.Linear(config.hidden_size, width, bias=False)
            self.column_proj = nn.Linear(config.hidden_size, width, bias=False)
        else:
            if config.sort_net == "mlp":
                self.hidden_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
            self.proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.max_num_blocks, bias=False)

    def forward(self, blocks: Tensor, context: BlockContext) -> Tensor:
        """`(B, N, b, E)` blocks of the attention's input to the sort matrix `(B, G, N, N)` in float32."""
        logits = self.logits(blocks, context.grid)
        if self.training and self.config.gumbel_noise:
            logits = logits + gumbel_noise(logits)
        logits = logits / self.config.sinkhorn_temperature
        balance = causal_sinkhorn_balance if self.config.is_decoder else sinkhorn_balance
        return balance(logits, context.allowed, self.config.sinkhorn_iterations)

    def logits(self, blocks: Tensor, grid: BlockGrid) -> Tensor:
        """`(B, N, b, E)` blocks to sorting logits `R`, `(B, G, N, N)` in float32."""
        config, dtype = self.config, blocks.dtype
        descriptors = block_descriptors(blocks, grid, config.sort_pooling, config.is_decoder).to(dtype)
        if config.sort_net != "bilinear":
            if grid.num_blocks > config.max_num_blocks:
                raise ValueError(
                    f"The input has {grid.num_blocks} blocks of {config.block_size} tokens, but a "
                    f"'{config.sort_net}' SortNet has outputs for {config.max_num_blocks} "
                    f"(max_position_embeddings={config.max_position_embeddings} // block_size={config.block_size}). "
                    "Shorten the input, or train with a larger `max_position_embeddings` or `sort_net='bilinear'`."
                )
            if config.sort_net == "mlp":
                descriptors = self.hidden_proj(descriptors).relu()
            logits = self.proj(descriptors).unflatten(-1, (-1, config.max_num_blocks))
            return _float32(logits[..., : grid.num_blocks].transpose(1, 2))
        rows = self.row_proj(descriptors).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)
        columns = self.column_proj(block_means(blocks, grid).to(dtype)).unflatten(-1, (-1, config.head_dim))
        # Half precision would round logits that differ by little to ties, also under autocast.
        with maybe_autocast(device_type=blocks.device.type, enabled=False):
            return _float32(rows) @ _float32(columns).permute(0, 2, 3, 1) * config.head_dim**-0.5


def _float32(x: Tensor) -> Tensor:
    """At least float32: half precision is raised, double stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# --------------------------------------------------------------------------------------------------------------------
# Attention
# --------------------------------------------------------------------------------------------------------------------


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """
    Attention as a formula. `query` `(*, H, Q, D)`, `key` and `value` `(*, G, K, D)`, `attention_mask` bool.

    Returns:
        The output `(*, Q, H, D)` and the weights `(*, H, Q, K)`, after dropout.
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SortedBlocks(NamedTuple):
    """What was sorted beside each of `n` destination blocks, `S` blocks of `b` slots each."""

    key: Tensor  # (B, n, S * b, G, D) rotated
    value: Tensor  # (B, n, S * b, G, D)
    mask: Tensor | None  # (B or 1, n, G or 1, S * b) bool
    source: Callable[[], Tensor]  # gives (B, G, n, S, N, b): the share of slot t of each source block; for maps


class SinkhornAttention(nn.Module):
    """Attention of one layer, of any entry of `layer_types`. Works on blocks: `(B, N, b, ...)` throughout."""

    def __init__(self, config: SinkhornConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.layer_type = config.layer_types[layer_idx]
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = config.is_decoder
        query_width = config.num_attention_heads * self.head_dim
        key_width = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=config.attention_bias)
        if self.layer_type in ("sinkhorn_attention", "sortcut_attention", "mixture_attention"):
            self.sort_net = SinkhornSortNet(config)

    def forward(
        self, hidden_states: Tensor, context: BlockContext, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """
        Args:
            hidden_states: `(B, L, E)`.

        Returns:
            The output `(B, L, E)`, 0 at padding; the source-token map `(B, H, L, L)`, or `None` where it was not asked
            for; the sort matrix `(B, G, N, N)`, or `None` in a layer that does not sort.
        """
        grid = context.grid
        blocks = to_blocks(hidden_states, grid)
        query = self.q_proj(blocks).unflatten(-1, (-1, self.head_dim))
        key = self.k_proj(blocks).unflatten(-1, (-1, self.head_dim))
        value = self.v_proj(blocks).unflatten(-1, (-1, self.head_dim))
        cos, sin = context.cos.unsqueeze(-2), context.sin.unsqueeze(-2)
        query, rotated_key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)

        sort_matrix = None
        output, attention_map = 0, None
        if self.layer_type in ("full_attention", "mixture_attention"):
            output, attention_map = self._full_attention(query, rotated_key, value, context, **kwargs)
        if self.layer_type != "full_attention":
            sorted_blocks = None
            if self.layer_type != "local_attention":
                sort_matrix = self.sort_net(blocks, context)
                sorted_blocks = self._sort(sort_matrix, key, rotated_key, value, context)
            attend = self._sortcut_attention if self.layer_type == "sortcut_attention" else self._block_attention
            block_output, block_map = attend(query, rotated_key, value, sorted_blocks, context, **kwargs)
            output = output + block_output
            # A mixture adds two outputs, each a mean of values; its map is the mean of the two maps.
            attention_map = block_map if attention_map is None else (attention_map + block_map) / 2

        output = from_blocks(self.o_proj(output.flatten(-2)), grid)
        if attention_map is not None:
            attention_map = _map_of_tokens(attention_map, grid)
        return output, attention_map, sort_matrix

    def _sort(
        self, sort_matrix: Tensor, key: Tensor, rotated_key: Tensor, value: Tensor, context: BlockContext
    ) -> SortedBlocks:
        """Sorts keys and values by one matrix (design 2.5 and 2.7). SortCut needs its first rows alone."""
        num_kept = min(self.config.sortcut_blocks, sort_matrix.shape[-1])
        rows = slice(num_kept) if self.layer_type == "sortcut_attention" else slice(None)
        sort_matrix = sort_matrix[:, :, rows]
        sort = self._hard_sort if self.config.sort_assignment == "hard" else self._soft_sort
        return sort(sort_matrix, rows, key, rotated_key, value, context)

    def _soft_sort(self, sort_matrix, rows, key, rotated_key, value, context) -> SortedBlocks:
        grid = context.grid
        # Rotated keys of different places must not be mixed: their phases would cancel. So mix first, then rotate.
        both = torch.cat((key, value), dim=-1)
        filled = None if self.is_causal else grid.filled
        if self.config.attention_bias and filled is not None:
            both = both.masked_fill(~filled[..., None, None], 0)
        mixed = soft_sort(sort_matrix, both, filled)
        mixed_key, mixed_value = mixed.permute(0, 2, 3, 1, 4).chunk(2, dim=-1)
        cos, sin = context.sorted_cos[:, rows].unsqueeze(-2), context.sorted_sin[:, rows].unsqueeze(-2)
        mask = None if context.sorted_mask is None else context.sorted_mask[:, rows].unsqueeze(2)
        nonempty = nonempty_blocks(grid)
        if mask is not None and nonempty is not None:
            mask = mask & nonempty[:, rows, None, None]

        def source() -> Tensor:
            if filled is None:
                share = sort_matrix.unsqueeze(-1).expand(*sort_matrix.shape, grid.block_size)
            else:
                share = sort_matrix.unsqueeze(-1) * filled[:, None, None].to(sort_matrix.dtype)
                share = share / share.sum(-2, keepdim=True).clamp_min(1e-30)
            return share.unsqueeze(3)

        return SortedBlocks(apply_rotary(mixed_key, cos, sin), mixed_value, mask, source)

    def _hard_sort(self, sort_matrix, rows, key, rotated_key, value, context) -> SortedBlocks:
        grid = context.grid
        candidates = context.candidates
        if self.layer_type == "sortcut_attention":  # it has no local blocks, so every block is a candidate
            everything = torch.ones(1, 1, *[grid.num_blocks] * 2, dtype=torch.bool, device=key.device)
            candidates = everything if context.allowed is None else context.allowed
        choice = hard_assignment(sort_matrix, candidates[:, :, rows], self.config.num_sorted_blocks)
        # Blocks are moved whole, so the true position of a key moves with it.
        gathered = hard_sort(choice, torch.cat((rotated_key, value), dim=-1))
        gathered = gathered.permute(0, 2, 3, 4, 1, 5).flatten(2, 3)
        gathered_key, gathered_value = gathered.chunk(2, dim=-1)

        def source() -> Tensor:
            share = nn.functional.one_hot(choice.index, grid.num_blocks).to(sort_matrix.dtype)
            return share.unsqueeze(-1).expand(*share.shape, grid.block_size)

        return SortedBlocks(gathered_key, gathered_value, _hard_mask(choice, grid), source)

    def _block_attention(
        self, query: Tensor, key: Tensor, value: Tensor, sorted_blocks: SortedBlocks | None, context, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """One softmax over [sorted blocks ; local blocks] (design 2.6). Every block is a batch entry of its own."""
        grid = context.grid
        offsets = local_offsets(self.config.num_local_blocks, self.config.is_decoder)
        keys, values = local_window(key, offsets), local_window(value, offsets)
        mask = None if context.local_mask is None else context.local_mask.unsqueeze(2)
        if sorted_blocks is not None:
            sorted_mask = None if sorted_blocks.mask is None else sorted_blocks.mask.unsqueeze(3)
            mask = _join_masks(sorted_mask, sorted_blocks.key.shape[2], mask, keys.shape[2], key.device)
            keys = torch.cat((sorted_blocks.key, keys), dim=2)
            values = torch.cat((sorted_blocks.value, values), dim=2)
        if mask is not None:
            mask = self._per_query_head(mask).expand(query.shape[0], *[-1] * 4).flatten(0, 1)
        output, weights = self._attend(
            query.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), mask, context, **kwargs
        )
        output = output.unflatten(0, query.shape[:2])
        if weights is None:
            return output, None
        weights = weights.unflatten(0, query.shape[:2]).transpose(1, 2)  # (B, H, N, b, K)
        num_local = len(offsets) * grid.block_size
        local_map = _local_map(weights[..., -num_local:], offsets, grid)
        if sorted_blocks is None:
            return output, local_map
        return output, local_map + self._sorted_map(weights[..., :-num_local], sorted_blocks)

    def _sortcut_attention(
        self, query: Tensor, key: Tensor, value: Tensor, sorted_blocks: SortedBlocks, context, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Every query attends to the kept sorted blocks, and to nothing else."""
        mask = sorted_blocks.mask
        if mask is not None:
            mask = self._per_query_head(mask.transpose(1, 2).flatten(2)[:, :, None, :], dim=1)
        keys, values = sorted_blocks.key.flatten(1, 2), sorted_blocks.value.flatten(1, 2)
        output, weights = self._attend(query.flatten(1, 2), keys, values, mask, context, **kwargs)
        output = output.unflatten(1, query.shape[1:3])
        if weights is None:
            return output, None
        kept = sorted_blocks.key.shape[1]
        # (B, H, N, b, K) weights; every block reads the same n destinations, side by side.
        weights = weights.unflatten(2, query.shape[1:3]).unflatten(-1, (kept, -1))
        source = self._source_per_query_head(sorted_blocks)
        weights = weights.unflatten(-1, (source.shape[3], source.shape[5]))
        return output, torch.einsum("bhiqnst,bhnsjt->bhiqjt", weights, source)

    def _full_attention(
        self, query: Tensor, key: Tensor, value: Tensor, context: BlockContext, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Ordinary attention over all real tokens, on the same grid."""
        output, weights = self._attend(
            query.flatten(1, 2), key.flatten(1, 2), value.flatten(1, 2), context.token_mask, context, **kwargs
        )
        output = output.unflatten(1, query.shape[1:3])
        if weights is None:
            return output, None
        return output, weights.unflatten(2, query.shape[1:3]).unflatten(-1, query.shape[1:3])

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, context, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """
        `query` `(*, Q, H, D)`, `key` and `value` `(*, K, G, D)`, `mask` bool `(*, H or 1, Q or 1, K)`. Returns the
        output `(*, Q, H, D)`, 0 for queries that may see nothing, and the weights if a map was asked for.
        """
        sees_something = None
        if mask is not None:
            # Rows that see nothing are opened, and their output is dropped: no softmax over nothing, no NaN.
            sees_something = mask.any(-1, keepdim=True)
            mask = mask | ~sees_something
            mask = mask.expand(query.shape[0], -1, query.shape[1], -1)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=False,
        )
        if not kwargs.get("output_attentions", self.config.output_attentions):
            weights = None
        if sees_something is not None:
            output = output.masked_fill(~sees_something.transpose(1, 2), 0)
            weights = None if weights is None else weights.masked_fill(~sees_something, 0)
        return output, weights

    def _per_query_head(self, mask: Tensor, dim: int = 2) -> Tensor:
        """Repeats a mask of `G` key/value heads for the `H` query heads; one for all heads stays one."""
        return mask if mask.shape[dim] == 1 else mask.repeat_interleave(self.num_key_value_groups, dim)

    def _source_per_query_head(self, sorted_blocks: SortedBlocks) -> Tensor:
        return sorted_blocks.source().repeat_interleave(self.num_key_value_groups, dim=1)

    def _sorted_map(self, weights: Tensor, sorted_blocks: SortedBlocks) -> Tensor:
        """Weights on sorted slots `(B, H, N, b, S * b)` to weights on the tokens they came from, `(B, H, N, b, N, b)`."""
        source = self._source_per_query_head(sorted_blocks)
        weights = weights.unflatten(-1, (source.shape[3], source.shape[5]))
        return torch.einsum("bhiqst,bhisjt->bhiqjt", weights, source.to(weights.dtype))


def _hard_mask(choice: HardSort, grid: BlockGrid) -> Tensor:
    """`(B, n, G, S * b)` bool: slots of chosen blocks that hold a token."""
    mask = choice.chosen.unsqueeze(-1)
    if grid.filled is None:
        mask = mask.expand(*choice.index.shape, grid.block_size)
    else:
        batch, heads, destinations, num_sorted = choice.index.shape
        index = choice.index.reshape(batch, -1, 1).expand(-1, -1, grid.block_size)
        filled = grid.filled.expand(batch, -1, -1).gather(1, index)
        mask = mask & filled.view(batch, heads, destinations, num_sorted, grid.block_size)
    return mask.flatten(-2).transpose(1, 2)


def _join_masks(left: Tensor | None, left_size: int, right: Tensor | None, right_size: int, device) -> Tensor | None:
    """Two masks side by side on the last dimension; a missing one is all True."""
    if left is None and right is None:
        return None
    if left is None:
        left = torch.ones(*[1] * right.dim(), dtype=torch.bool, device=device).expand(*right.shape[:-1], left_size)
    if right is None:
        right = torch.ones(*[1] * left.dim(), dtype=torch.bool, device=device).expand(*left.shape[:-1], right_size)
    shape = torch.broadcast_shapes(left.shape[:-1], right.shape[:-1])
    return torch.cat((left.expand(*shape, left_size), right.expand(*shape, right_size)), dim=-1)


def _local_map(weights: Tensor, offsets: range, grid: BlockGrid) -> Tensor:
    """Weights on local slots `(B, H, N, b, K_local)` to weights on tokens of the grid, `(B, H, N, b, N, b)`."""
    block = torch.arange(grid.num_blocks, device=weights.device)
    offset = torch.tensor(list(offsets), device=weights.device)
    is_source = (block.view(-1, 1, 1) + offset.view(1, -1, 1)) == block  # (N, offsets, N)
    weights = weights.unflatten(-1, (len(offsets), grid.block_size))
    return torch.einsum("bhiqot,ioj->bhiqjt", weights, is_source.to(weights.dtype))


def _map_of_tokens(grid_map: Tensor, grid: BlockGrid) -> Tensor:
    """A map between slots, `(B, H, N, b, N, b)`, to one between tokens, `(B, H, L, L)`, 0 at padding."""
    grid_map = grid_map.flatten(4, 5).flatten(2, 3)
    if grid.slot_of_token is None:
        return grid_map[..., : grid.num_tokens, : grid.num_tokens]
    slots = grid.slot_of_token[:, None]
    heads, num_slots = grid_map.shape[1], grid_map.shape[-1]
    rows = grid_map.gather(2, slots.unsqueeze(-1).expand(-1, heads, -1, num_slots))
    tokens = rows.gather(3, slots.unsqueeze(-2).expand(-1, heads, grid.num_tokens, -1))
    real = grid.is_real[:, None]
    return tokens.masked_fill(~(real.unsqueeze(-1) & real.unsqueeze(-2)), 0)


# --------------------------------------------------------------------------------------------------------------------
# Layer and model
# --------------------------------------------------------------------------------------------------------------------


class SinkhornLayer(GradientCheckpointingLayer):
    def __init__(self, config: SinkhornConfig, layer_idx: int):
        super().__init__()
        self.self_attn = SinkhornAttention(config, layer_idx)
        self.mlp = SinkhornMLP(config)
        self.input_layernorm = SinkhornRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = SinkhornRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: Tensor, context: BlockContext, **kwargs: Unpack[TransformersKwargs]) -> Tensor:
        """`(B, L, E)` to `(B, L, E)`."""
        attended, _, _ = self.self_attn(self.input_layernorm(hidden_states), context, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))


class SinkhornPreTrainedModel(PreTrainedModel):
    config: SinkhornConfig
    config_class = SinkhornConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SinkhornLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = False
    _can_record_outputs = {
        "hidden_states": SinkhornLayer,
        "attentions": OutputRecorder(SinkhornAttention, index=1),
        "sort_matrices": OutputRecorder(SinkhornAttention, index=2),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)


@dataclass
class SinkhornModelOutput(BaseModelOutputWithPast):
    """
    `BaseModelOutputWithPast`, and `sort_matrices`: with `output_sort_matrices=True`, one `(B, G, N, N)` tensor for
    each layer that sorts, from the first to the last.
    """

    sort_matrices: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SinkhornMaskedLMOutput(MaskedLMOutput):
    """`MaskedLMOutput`, and `sort_matrices` as in `SinkhornModelOutput`."""

    sort_matrices: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SinkhornSequenceClassifierOutput(SequenceClassifierOutput):
    """`SequenceClassifierOutput`, and `sort_matrices` as in `SinkhornModelOutput`."""

    sort_matrices: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SinkhornTokenClassifierOutput(TokenClassifierOutput):
    """`TokenClassifierOutput`, and `sort_matrices` as in `SinkhornModelOutput`."""

    sort_matrices: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SinkhornQuestionAnsweringOutput(QuestionAnsweringModelOutput):
    """`QuestionAnsweringModelOutput`, and `sort_matrices` as in `SinkhornModelOutput`."""

    sort_matrices: tuple[torch.FloatTensor, ...] | None = None


class SinkhornModel(SinkhornPreTrainedModel):
    """The Sinkhorn Transformer without a head."""

    def __init__(self, config: SinkhornConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList([SinkhornLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = SinkhornRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = SinkhornRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SinkhornModelOutput:
        """
        Args:
            input_ids: `(B, L)` tokens, any `L >= 1`; or `inputs_embeds`, `(B, L, E)`.
            attention_mask: `(B, L)`, 1 at real tokens and 0 at padding, wherever it stands. Padding changes nothing.
            position_ids: `(B, L)`; by default the rank of each token among the real tokens of its row.
            output_attentions (`bool`): with `attn_implementation="eager"`, adds per layer `attentions`,
                `(B, H, L, L)`: the weight that each query gave to each source token, also through the sorting.
            output_sort_matrices (`bool`): adds `sort_matrices`, `(B, G, N, N)` for each layer that sorts.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if kwargs.get("output_attentions") and self.config._attn_implementation != "eager":
            logger.warning_once(
                "`output_attentions=True` needs the eager implementation: call "
                '`model.set_attn_implementation("eager")`. No attention maps are returned.'
            )
        attention_mask = _check_mask(attention_mask, inputs_embeds)
        context = make_block_context(self.config, self.rotary_emb, inputs_embeds, attention_mask, position_ids)
        hidden_states = self.dropout(inputs_embeds)
        for layer in self.layers:
            hidden_states = layer(hidden_states, context, **kwargs)
        return SinkhornModelOutput(last_hidden_state=self.norm(hidden_states))


def _check_mask(attention_mask: Tensor | None, inputs_embeds: Tensor) -> Tensor | None:
    """The mask, or `None` where it masks nothing. Raises where it is not one number per token."""
    if attention_mask is None:
        return None
    if attention_mask.shape != inputs_embeds.shape[:2]:
        raise ValueError(
            f"`attention_mask` has shape {tuple(attention_mask.shape)}, but the input needs "
            f"{tuple(inputs_embeds.shape[:2])}: one 0 (padding) or 1 per token of each row."
        )
    # While tracing, the answer would be burnt into the graph.
    if not is_tracing(attention_mask) and bool(attention_mask.all()):
        return None
    return attention_mask


# --------------------------------------------------------------------------------------------------------------------
# Heads
# --------------------------------------------------------------------------------------------------------------------


class SinkhornForMaskedLM(SinkhornPreTrainedModel):
    """The Sinkhorn Transformer with a language modelling head on every token."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: SinkhornConfig):
        super().__init__(config)
        if config.is_decoder:
            raise ValueError("SinkhornForMaskedLM reads both directions: use a config with `is_decoder=False`.")
        self.model = SinkhornModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SinkhornMaskedLMOutput:
        """`labels` `(B, L)`: the token to predict, -100 where none is. Returns `logits` `(B, L, vocab_size)`."""
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return SinkhornMaskedLMOutput(
            loss, logits, outputs.hidden_states, outputs.attentions, sort_matrices=outputs.sort_matrices
        )


class SinkhornForSequenceClassification(SinkhornPreTrainedModel):
    """The Sinkhorn Transformer with one prediction per document: classes, several labels, or a regression."""

    def __init__(self, config: SinkhornConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = SinkhornModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SinkhornSequenceClassifierOutput:
        """
        `labels`: `(B,)` classes, `(B, num_labels)` floats for several labels, or `(B,)` or `(B, num_labels)` floats for
        a regression (`config.problem_type`). Returns `logits` `(B, num_labels)`.

        Without an `attention_mask`, tokens equal to `config.pad_token_id` count as real.
        """
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        pooled = pool_tokens(outputs.last_hidden_state, attention_mask, self.config.pooling)
        logits = self.score(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return SinkhornSequenceClassifierOutput(
            loss, logits, outputs.hidden_states, outputs.attentions, sort_matrices=outputs.sort_matrices
        )


def pool_tokens(hidden_states: Tensor, attention_mask: Tensor | None, pooling: str) -> Tensor:
    """
    `(B, L, E)` tokens to `(B, E)`: the `"mean"` over real tokens, the `"last"` real token, or the first (`"cls"`),
    wherever the padding stands. A row without a real token gives 0 for the mean.
    """
    if attention_mask is None:
        if pooling == "mean":
            return hidden_states.mean(1)
        return hidden_states[:, 0 if pooling == "cls" else -1]
    is_real = attention_mask != 0
    if pooling == "mean":
        weights = is_real.unsqueeze(-1).to(hidden_states.dtype)
        return (hidden_states * weights).sum(1) / is_real.sum(1, keepdim=True).clamp(min=1).to(hidden_states.dtype)
    order = torch.arange(is_real.shape[1], device=is_real.device)
    if pooling == "cls":
        order = -order
    index = order.masked_fill(~is_real, -is_real.shape[1]).argmax(1)
    return hidden_states[torch.arange(len(index), device=index.device), index]


class SinkhornForTokenClassification(SinkhornPreTrainedModel):
    """The Sinkhorn Transformer with one class per token."""

    def __init__(self, config: SinkhornConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = SinkhornModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SinkhornTokenClassifierOutput:
        """`labels` `(B, L)`: the class of each token, -100 where none is. Returns `logits` `(B, L, num_labels)`."""
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        logits = self.score(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config, **kwargs)
        return SinkhornTokenClassifierOutput(
            loss, logits, outputs.hidden_states, outputs.attentions, sort_matrices=outputs.sort_matrices
        )


class SinkhornForQuestionAnswering(SinkhornPreTrainedModel):
    """The Sinkhorn Transformer with the two ends of an answer found in the text."""

    def __init__(self, config: SinkhornConfig):
        super().__init__(config)
        self.model = SinkhornModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SinkhornQuestionAnsweringOutput:
        """`start_positions`, `end_positions` `(B,)`: tokens. Returns `start_logits` and `end_logits`, `(B, L)` each."""
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        start_logits, end_logits = (
            ends.contiguous() for ends in self.qa_outputs(outputs.last_hidden_state).unbind(-1)
        )
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **kwargs)
        return SinkhornQuestionAnsweringOutput(
            loss, start_logits, end_logits, outputs.hidden_states, outputs.attentions, outputs.sort_matrices
        )


def _classifier_dropout(config: SinkhornConfig) -> float:
    return config.hidden_dropout if config.classifier_dropout is None else config.classifier_dropout


AutoConfig.register("sinkhorn", SinkhornConfig, exist_ok=True)
for _auto_class, _model_class in (
    (AutoModel, SinkhornModel),
    (AutoModelForMaskedLM, SinkhornForMaskedLM),
    (AutoModelForSequenceClassification, SinkhornForSequenceClassification),
    (AutoModelForTokenClassification, SinkhornForTokenClassification),
    (AutoModelForQuestionAnswering, SinkhornForQuestionAnswering),
):
    _auto_class.register(SinkhornConfig, _model_class, exist_ok=True)
    # `save_pretrained` then copies this code into the folder, so that it loads where the package is not installed.
    _model_class.register_for_auto_class(_auto_class.__name__)

__all__ = [
    "SinkhornForMaskedLM",
    "SinkhornForQuestionAnswering",
    "SinkhornForSequenceClassification",
    "SinkhornForTokenClassification",
    "SinkhornModel",
    "SinkhornPreTrainedModel",
]
