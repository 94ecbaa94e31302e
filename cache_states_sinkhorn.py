# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The states of a cache layer for incremental decoding (design sections 3 and 9.7). The layers are in `cache_sinkhorn.py`.

A row's real tokens are stored without gaps, in the slots of the block grid; padding is not stored. Next to keys and
values a layer keeps what sorting needs to resume: features of each block, the running column sums of causal balancing,
and what is sorted next to the block being written.

Shape letters as in `sorting_sinkhorn.py` and `layout_sinkhorn.py`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


try:  # a folder on the Hub, or any package
    from .balancing_sinkhorn import causal_floor
    from .layout_sinkhorn import CacheLayout
except ImportError:  # flat modules, as installed
    from balancing_sinkhorn import causal_floor
    from layout_sinkhorn import CacheLayout


# Blocks whose inputs are kept, the one being written included: how far `crop` reaches without a recording.
RECENT_BLOCKS = 2
# The tensors that a layer may hold. The first dimension of each is the batch; those that grow with the text are listed
# with the dimension that does, by tokens or by blocks.
TOKEN_STATES = (("stored_keys", 2), ("stored_values", 2), ("positions", 1))
BLOCK_STATES = (
    ("row_features", 1),
    ("column_features", 1),
    ("totals", 1),
    ("piece_keys", 2),
    ("recent_columns", 4),
)
OTHER_STATES = tuple("counts recent_inputs first_kept columns open_row sorted_key sorted_value sorted_mask".split())
FILLED_BY_THE_MODEL = (
    "The cache of a layer that sorts is filled by the model's attention alone, as sorting needs more than keys and "
    "values: prefix tuning, and whatever else brings keys and values of its own, cannot be used with this model."
)
STATES = tuple(name for name, _ in (*TOKEN_STATES, *BLOCK_STATES)) + OTHER_STATES


def may_change_in_place(state: Tensor) -> bool:
    """Whether no backward pass can need the state as it is, and torch allows to change it in place."""
    if torch.is_grad_enabled() or state.requires_grad:
        return False
    # A compiled step cannot check; it changes its states in place.
    return torch.compiler.is_compiling() or not state.is_inference() or torch.is_inference_mode_enabled()


def _fit(state: Tensor, size: int, filler: float) -> Tensor:
    """`state` with its last dimension cut or padded to `size`."""
    return nn.functional.pad(state, (0, size - state.shape[-1]), value=filler)


class OpenBlock(NamedTuple):
    """What is sorted next to the block that each row is writing."""

    key: Tensor  # (B, 1, G, S * b, D) rotated
    value: Tensor  # (B, 1, G, S * b, D)
    mask: Tensor  # (B, 1, 1 or G, S * b) bool


class BlockStates:
    """
    What the dynamic and the static layer share. `L` is the capacity in tokens, a multiple of the block size.

    The attention of a layer calls, in every pass and in this order: `make_room`, `apply_crop`, `append`; and where the
    layer sorts: `append_inputs`, `put_blocks` with what the SortNet makes of the inputs, and `keep_open_block`.
    """

    stored_keys: Tensor | None  # (B, G, L, D), rotated unless softly sorted blocks are mixed from them
    stored_values: Tensor | None  # (B, G, L, D)
    positions: Tensor | None  # (B, L) rotary positions, where keys are not rotated
    counts: Tensor | None  # (B,) tokens stored
    recent_inputs: Tensor | None  # (B, blocks * b + 1, E) the layer's latest inputs, a ring by slot; last: no token
    first_kept: Tensor | None  # (B,) the first block whose inputs are all in the ring
    row_features: Tensor | None  # (B, N, F) of each block as a destination
    column_features: Tensor | None  # (B, N, F) of each full block as a source
    totals: Tensor | None  # (B, N, E) sum of the inputs to the end of each full block
    piece_keys: Tensor | None  # (B, G, N, p * C) what queries are compared with, of each piece of a block
    recent_columns: Tensor | None  # (B, blocks * b + 1, G, T, N) column sums of a plan after each of the latest tokens
    columns: Tensor | None  # (B, G, T, N) running column sums, see `causal_sinkhorn_balance`
    open_row: Tensor | None  # (B, G, N) the row of the sort matrix of the block being written

    is_croppable = True
    is_sliding = False
    # The size of a block, and with it the shape of all states, is known only with the first tokens.
    supports_early_init = False

    def _forget(self) -> None:
        for name in STATES:
            setattr(self, name, None)
        self.is_initialized = False
        self.record_past = False
        self.crops_anywhere = False  # set by attention that needs nothing but keys
        self.recorded_tokens = 0  # since the last `crop`
        self.cropped_tokens = 0  # since the last pass

    # Making room ----------------------------------------------------------------------------------------------------

    def make_room(self, layout: CacheLayout, block_size: int, like: Tensor) -> None:
        """To be called first in every pass: from here on the states have room for the layout's `num_blocks`."""
        if not self.is_initialized:
            self.dtype, self.device = like.dtype, like.device
            self.block_size = block_size
            self.capacity = self._capacity(layout.num_blocks)
            self.counts, self.first_kept = torch.zeros_like(layout.counts), torch.zeros_like(layout.counts)
            self.cumulative_length = self._cumulative_length_on(like.device)
            self.is_initialized = True
        if layout.num_blocks > self.capacity:
            old, self.capacity = self.capacity, self._capacity(layout.num_blocks)
            for name, dim in (*TOKEN_STATES, *BLOCK_STATES):
                state = getattr(self, name)
                if state is not None:
                    shape = list(state.shape)
                    shape[dim] = (self.capacity - old) * (block_size if (name, dim) in TOKEN_STATES else 1)
                    setattr(self, name, torch.cat((state, state.new_zeros(shape)), dim))

    def _state(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """The state of that name, created on first use; `shape` without the batch."""
        if getattr(self, name) is None:
            setattr(self, name, like.new_zeros(like.shape[0], *shape))
        return getattr(self, name)

    def keep(self, name: str, value: Tensor) -> None:
        """Stores `value` as the state of that name."""
        setattr(self, name, value)

    # Writing --------------------------------------------------------------------------------------------------------

    def append(self, key: Tensor, value: Tensor, layout: CacheLayout, rotated: bool) -> None:
        """
        Stores keys and values of new tokens.

        Args:
            key, value: `(B, M, Q, G, D)` on the grid of the new tokens.
            rotated: whether keys are rotated already; else their positions are stored too.
        """
        slots = self.capacity * self.block_size
        index = layout.slots[:, None, :, None]
        for name, tokens in (("stored_keys", key), ("stored_values", value)):
            tokens = tokens.flatten(1, 2).transpose(1, 2)  # (B, G, M * Q, D)
            state = self._state(name, tokens.shape[1], slots, tokens.shape[-1], like=tokens)
            self._write(name, state, 2, index, tokens)
        if not rotated:
            state = self._state("positions", slots, like=layout.positions)
            self._write("positions", state, 1, layout.slots, layout.positions)
        self.keep("counts", layout.counts)
        self.cumulative_length += layout.num_tokens
        first_kept = layout.latest_block - (self._num_recent_blocks(layout.num_tokens) - 1)
        self.keep("first_kept", torch.maximum(self.first_kept, first_kept))

    def append_one(self, key: Tensor, value: Tensor, layout: CacheLayout, inputs: Tensor | None = None) -> None:
        """
        `append` of one token `(B, G, D)` in each of equally long rows, in place; of its `inputs` `(B, E)` too, where
        those are kept. `first_kept`, which they need, stays what it is: with them only inside a block that is open.
        """
        self.stored_keys.select(2, layout.equal_past).copy_(key)
        self.stored_values.select(2, layout.equal_past).copy_(value)
        if self.positions is not None:
            self.positions.narrow(1, layout.equal_past, 1).copy_(layout.positions)
        self.keep("counts", layout.counts)
        self.cumulative_length += layout.num_tokens
        self._num_recent_blocks(layout.num_tokens)
        if inputs is not None:
            ring = self._ring("recent_inputs", layout, inputs.shape[-1], like=inputs)
            self.recent_inputs.select(1, layout.equal_past % ring).copy_(inputs)

    def _write(self, name: str, state: Tensor, dim: int, index: Tensor, values: Tensor) -> None:
        """Writes `values` at `index` along `dim`, in place where no backward pass can need the state as it was."""
        index, values = index.expand_as(values), values.to(state.dtype)
        if may_change_in_place(state):
            state.scatter_(dim, index, values)
        else:
            setattr(self, name, state.scatter(dim, index, values))

    def append_inputs(self, blocks: Tensor, layout: CacheLayout) -> Tensor | None:
        """
        Stores the layer's inputs of new tokens, `(B, M, Q, E)` on their grid, zero in empty slots.

        Returns:
            `(B, M, b, E)`: the blocks that new tokens touch, with the tokens that the first one held already; `None`
            where no block opens or is filled up, so that nothing needs them.
        """
        b, width = self.block_size, blocks.shape[-1]
        ring = self._ring("recent_inputs", layout, width, like=blocks)
        if layout.equal_past is not None and may_change_in_place(self.recent_inputs):
            return self._append_equal_inputs(blocks, layout, ring)
        held = None
        if layout.opens or layout.closes:
            slot = torch.arange(b, device=blocks.device)
            held = (layout.first_block.unsqueeze(-1) * b + slot) % ring
            held = self.recent_inputs.gather(1, held.unsqueeze(-1).expand(-1, -1, width))
        index = self._places_in_ring(layout, ring).unsqueeze(-1)
        self._write("recent_inputs", self.recent_inputs, 1, index, blocks.flatten(1, 2))
        if held is None:
            return None
        held = held.masked_fill((slot >= layout.offset.unsqueeze(-1)).unsqueeze(-1), 0)
        if blocks.shape[2] != b:  # a step of one token
            blocks = blocks * (slot == layout.offset.unsqueeze(-1))[:, None, :, None].to(blocks.dtype)
        return torch.cat((blocks[:, :1] + held.unsqueeze(1), blocks[:, 1:]), dim=1)

    def _append_equal_inputs(self, blocks: Tensor, layout: CacheLayout, ring: int) -> Tensor | None:
        """`append_inputs` of one token in each of equally long rows, in place."""
        b, place = self.block_size, layout.equal_past % ring
        self.recent_inputs.select(1, place).copy_(blocks[:, 0, 0])
        if layout.opens:
            return nn.functional.pad(blocks, (0, 0, 0, b - 1))
        return self.recent_inputs.narrow(1, place + 1 - b, b).unsqueeze(1) if layout.closes else None

    def _num_recent_blocks(self, num_tokens: int = 0) -> int:
        """Blocks in the ring of recent inputs, with new tokens. While recording, none is dropped until a `crop`."""
        self.recorded_tokens = self.recorded_tokens + num_tokens if self.record_past else 0
        return RECENT_BLOCKS + -(-self.recorded_tokens // self.block_size)

    def _ring(self, name: str, layout: CacheLayout, *shape: int, like: Tensor, more_blocks: int = 0) -> int:
        """Makes room in the ring of that name, and returns its size; `shape` of one entry."""
        num_blocks = self._num_recent_blocks() + more_blocks
        ring, state = num_blocks * self.block_size, getattr(self, name)
        if state is None:
            setattr(self, name, like.new_zeros(like.shape[0], ring + 1, *shape))
        elif state.shape[1] != ring + 1:
            setattr(self, name, self._resized_ring(state, num_blocks, layout))
        return ring

    def _places_in_ring(self, layout: CacheLayout, ring: int) -> Tensor:
        """
        `(B, M * Q)`: where new tokens go in a ring, the last place for what is no token. Only the last of many new
        tokens are kept: no place is written twice.
        """
        if layout.is_one_token:
            return layout.slots % ring
        oldest = (layout.latest_block - ring // self.block_size).unsqueeze(-1)
        stays = layout.filled.flatten(1) & (layout.slots // self.block_size > oldest)
        return torch.where(stays, layout.slots % ring, ring)

    def _resized_ring(self, state: Tensor, num_blocks: int, layout: CacheLayout) -> Tensor:
        """A ring of another size. Rows keep their latest blocks, as many as fit."""
        b, old_ring = self.block_size, state.shape[1] - 1
        last = (layout.past_counts - 1).clamp(min=0) // b
        place = torch.arange(num_blocks, device=last.device)
        # (B, blocks): the latest block with that place in the ring, below 0 where there is none.
        block = last.unsqueeze(-1) - (last.unsqueeze(-1) - place) % num_blocks
        slots = (block.unsqueeze(-1) * b + torch.arange(b, device=last.device)).flatten(1) % old_ring
        slots = nn.functional.pad(slots, (0, 1), value=old_ring)
        slots = slots.view(*slots.shape, *[1] * (state.dim() - 2)).expand(-1, -1, *state.shape[2:])
        return state.gather(1, slots)

    # Column sums of a plan from tokens to blocks -------------------------------------------------------------------

    def column_sums_before(self, layout: CacheLayout) -> Tensor | None:
        """`(B, G, T, N)`: the column sums after the last token in the cache; `None` in an empty one."""
        if self.recent_columns is None:
            return None
        ring = self.recent_columns.shape[1] - 1
        last = ((layout.past_counts - 1).clamp(min=0) % ring).view(-1, 1, 1, 1, 1)
        columns = self.recent_columns.gather(1, last.expand(-1, 1, *self.recent_columns.shape[2:])).squeeze(1)
        columns = columns.masked_fill((layout.past_counts == 0).view(-1, 1, 1, 1), 0)
        return columns[..., : layout.num_blocks]

    def keep_column_sums(self, queries: slice, sums: Tensor, layout: CacheLayout) -> None:
        """Stores the column sums after each of the latest tokens. `sums` `(B, G, n, T, N)` of these `queries`."""
        sums = nn.functional.pad(sums, (0, self.capacity - sums.shape[-1])).transpose(1, 2)
        # A block begins with the sums after the last token of the block before it.
        ring = self._ring("recent_columns", layout, *sums.shape[2:], like=sums, more_blocks=1)
        index = self._places_in_ring(layout, ring)[:, queries]
        self._write("recent_columns", self.recent_columns, 1, index.view(*index.shape, 1, 1, 1), sums)

    def put_blocks(self, name: str, features: Tensor, layout: CacheLayout, written: Tensor | None = None) -> Tensor:
        """
        Stores `(B, M, F)` or `(B, G, M, F)`, one entry for each block that new tokens touch, under a name of `STATES`.

        Args:
            written: `(B, M)` bool, which of them; `None` for all that hold tokens.

        Returns:
            `(B, N, F)` or `(B, G, N, F)`: those of all blocks, the layout's `num_blocks`.
        """
        dim = features.dim() - 2
        state = self._state(name, *features.shape[1:dim], self.capacity, features.shape[-1], like=features)
        if layout.equal_past is not None and may_change_in_place(state):  # of one block, the same one in all rows
            if written is None or layout.opens:
                state.narrow(dim, layout.equal_past // self.block_size, 1).copy_(features)
            return state.narrow(dim, 0, layout.num_blocks)
        number = torch.arange(features.shape[dim], device=features.device)
        if written is None:
            written = number <= layout.last_block.unsqueeze(-1)
        # No token ever stands in the last block.
        index = torch.where(written, layout.first_block.unsqueeze(-1) + number, layout.num_blocks - 1)
        index = index.view(index.shape[0], *[1] * (dim - 1), -1, 1)
        self._write(name, state, dim, index, features)
        return getattr(self, name).narrow(dim, 0, layout.num_blocks)

    # Reading --------------------------------------------------------------------------------------------------------

    @property
    def keys(self) -> Tensor | None:
        """`(B, G, tokens, D)`: the keys of the tokens that are there, of the longest row, as other tools read them."""
        return None if self.stored_keys is None else self.stored_keys[:, :, : self._shown_length()]

    @keys.setter
    def keys(self, state: Tensor | None) -> None:
        self._refuse_to_set(state)

    @property
    def values(self) -> Tensor | None:
        """The values, like `keys`."""
        return None if self.stored_values is None else self.stored_values[:, :, : self._shown_length()]

    @values.setter
    def values(self, state: Tensor | None) -> None:
        self._refuse_to_set(state)

    def _refuse_to_set(self, state: Tensor | None) -> None:
        if state is not None:  # the library's constructor sets `None`
            raise AttributeError(f"`keys` and `values` of {type(self).__name__} cannot be set. {FILLED_BY_THE_MODEL}")

    @property
    def has_rotated_keys(self) -> bool:
        """Positions are stored where keys are not rotated."""
        return self.positions is None

    def key_value_blocks(self) -> tuple[Tensor, Tensor]:
        """Keys and values as blocks, `(B, G, N, b, D)` each, views of the cache in its full capacity."""
        states = self.stored_keys, self.stored_values
        return tuple(state.unflatten(2, (self.capacity, self.block_size)) for state in states)

    def pieces(self, layout: CacheLayout, piece_size: int) -> Tensor:
        """`(B, G, N, p, C)`: what queries are compared with."""
        return self.piece_keys[:, :, : layout.num_blocks].unflatten(-1, (self.block_size // piece_size, -1))

    def total_before(self, layout: CacheLayout) -> Tensor | None:
        """`(B, E)`: the sum of the inputs before the first block that new tokens touch."""
        if self.totals is None:
            return None
        if layout.equal_past is not None and layout.equal_past >= self.block_size:
            return self.totals[:, layout.equal_past // self.block_size - 1]
        index = (layout.first_block - 1).clamp(min=0)[:, None, None].expand(-1, 1, self.totals.shape[-1])
        total = self.totals.gather(1, index).squeeze(1)
        return total.masked_fill((layout.first_block == 0).unsqueeze(-1), 0)

    def column_sums(self, num_blocks: int) -> Tensor | None:
        """`(B, G, T, num_blocks)`: what causal balancing resumes from."""
        if self.columns is None:
            return None
        return _fit(self.columns, num_blocks, causal_floor(self.columns.dtype))

    def open_row_of(self, num_blocks: int) -> Tensor | None:
        """`(B, G, 1, num_blocks)`: the row of the sort matrix of the block being written; `None` in an empty cache."""
        return None if self.open_row is None else _fit(self.open_row, num_blocks, 0.0).unsqueeze(2)

    @property
    def open_block(self) -> OpenBlock:
        return OpenBlock(self.sorted_key, self.sorted_value, self.sorted_mask)

    def keep_open_block(self, block: OpenBlock, row: Tensor) -> None:
        """`row` `(B, G, N)`: the row of the sort matrix that gave `block`."""
        for name, value in (*zip(("sorted_key", "sorted_value", "sorted_mask"), block), ("open_row", row)):
            self.keep(name, value)

    # Going back -----------------------------------------------------------------------------------------------------

    def activate_past_recording(self) -> None:
        """Keeps the inputs of all tokens from now to the next `crop`, so that it can go back to any of them."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """
        Drops the last tokens of all rows; `tokens_to_remove` is 0 or negative, as everywhere in the library. Blocks
        that were full may open again.

        Raises:
            ValueError: for a positive number.
            RuntimeError: the inputs of a block that would open again are no longer kept. They are kept for the last
                `RECENT_BLOCKS` blocks, and after `activate_past_recording` for all tokens since then.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"`crop` takes 0 or a negative number, got {tokens_to_remove}: -n removes the last n tokens."
            )
        if tokens_to_remove < 0 and self.is_initialized:
            removed = self.cropped_tokens - tokens_to_remove
            # Where padding may be among what is removed, more is left; the next mask tells, in `apply_crop`.
            left = torch.where(self.counts == self.get_seq_length() + self.cropped_tokens, self.counts - removed, 0)
            self._check_inputs_are_kept(left.clamp(min=0))
            self.cropped_tokens = removed
            self._uncount(-tokens_to_remove)
        self.recorded_tokens = 0

    def apply_crop(self, layout: CacheLayout) -> bool:
        """
        To be called before new tokens are stored. Applies what `crop` removed since the last pass.

        Returns:
            Whether a block of any row opened again, or a whole block was removed: then the balancing of later blocks
            must be undone.
        """
        if self.cropped_tokens == 0:
            return False
        self._check_inputs_are_kept(layout.past_counts)
        self.cropped_tokens = 0
        num_blocks, num_left = (
            (counts + self.block_size - 1) // self.block_size for counts in (self.counts, layout.past_counts)
        )
        self.keep("first_kept", torch.minimum(self.first_kept, num_left))
        return self.open_row is not None and bool((num_left < num_blocks).any())

    def _check_inputs_are_kept(self, counts: Tensor) -> None:
        """Raises where rows of `counts` tokens would continue in a block whose inputs are gone."""
        if self.crops_anywhere:
            return
        gone = (counts % self.block_size != 0) & (counts // self.block_size < self.first_kept)
        if self.recent_columns is not None:
            gone = gone | ((counts > 0) & ((counts - 1) // self.block_size < self.first_kept - 1))
        if bool(gone.any()):
            raise RuntimeError(
                "`crop` goes back further than the cache kept what sorting needs. Call `activate_past_recording()` on "
                "the cache before the tokens that may be removed"
                + (
                    "."
                    if self.recent_columns is not None
                    else f", or crop to a multiple of the block size ({self.block_size} tokens)."
                )
            )

    # Rows of the batch ----------------------------------------------------------------------------------------------

    def _on_rows(self, change) -> None:
        for name in STATES:
            state = getattr(self, name)
            if state is not None:
                setattr(self, name, change(state))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._on_rows(lambda state: state.index_select(0, beam_idx.to(state.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._on_rows(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._on_rows(lambda state: state[indices])

    # Moving to the CPU and back -------------------------------------------------------------------------------------

    def offload(self) -> None:
        self._on_rows(lambda state: state.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        if self.is_initialized:
            self._on_rows(lambda state: state.to(self.device, non_blocking=True))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Does nothing: every state is created when it is first written."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        raise TypeError(f"{type(self).__name__} has no `update`. {FILLED_BY_THE_MODEL}")
