# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Cache layers for incremental decoding (design section 3). Importing this module registers them with the library, so
that `DynamicCache(config=...)`, `StaticCache(config=...)` and `generate()` create them automatically. What they hold,
and how it is written, is in `cache_states_sinkhorn.py`.
"""

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, StaticLayer


try:  # a folder on the Hub, or any package
    from .cache_states_sinkhorn import BlockStates, may_change_in_place
except ImportError:  # flat modules, as installed
    from cache_states_sinkhorn import BlockStates, may_change_in_place


class SinkhornDynamicLayer(BlockStates, DynamicLayer):
    """The cache of a `"sinkhorn_attention"` layer, growing with the text."""

    _layer_type = "sinkhorn_attention"

    def __init__(self, **kwargs):
        super().__init__()
        self.reset()

    def _capacity(self, num_blocks: int) -> int:
        # An eighth more, so that each token is copied some eight times in all, however long the text becomes.
        return num_blocks + num_blocks // 8 + 4

    def _cumulative_length_on(self, device: torch.device) -> int:
        return self.cumulative_length

    def _shown_length(self) -> int:
        # A row may have less than was removed by a `crop` that is not applied yet.
        return min(int(self.counts.max()), self.cumulative_length)

    def _uncount(self, num_tokens: int) -> None:
        self.cumulative_length = max(self.cumulative_length - num_tokens, 0)

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def reset(self) -> None:
        self._forget()
        self.cumulative_length = 0


class SinkhornStaticLayer(BlockStates, StaticLayer):
    """The same with room for `max_cache_len` tokens, whose tensors keep their addresses in memory."""

    _layer_type = "sinkhorn_attention"

    def __init__(self, max_cache_len: int, **kwargs):
        super().__init__(max_cache_len)
        self._forget()

    def _capacity(self, num_blocks: int) -> int:
        return self.num_blocks(self.block_size)

    def num_blocks(self, block_size: int) -> int:
        """Blocks of the cache, with one that never holds a token."""
        return -(-self.max_cache_len // block_size) + 1

    def keep(self, name: str, value: Tensor) -> None:
        state = getattr(self, name)
        if state is None:
            value = value.clone(memory_format=torch.contiguous_format)
            setattr(self, name, value)
        elif may_change_in_place(state):
            state.copy_(value)
        else:
            setattr(self, name, value)

    def _shown_length(self) -> int:
        return self.max_cache_len  # as the library's static layers

    def _cumulative_length_on(self, device: torch.device) -> Tensor:
        self.batch_size = len(self.counts)
        return self.cumulative_length.to(device)

    def _uncount(self, num_tokens: int) -> None:
        self.cumulative_length.sub_(num_tokens).clamp_(min=0)

    def reset(self) -> None:
        self._forget()
        self.cumulative_length.zero_()


class MixtureDynamicLayer(SinkhornDynamicLayer):
    _layer_type = "mixture_attention"


class MixtureStaticLayer(SinkhornStaticLayer):
    _layer_type = "mixture_attention"


# These could be cropped anywhere, but refuse what sorting layers refuse: otherwise a `crop` would stop at the first of
# those, after local layers before it were cropped already.
class LocalDynamicLayer(SinkhornDynamicLayer):
    _layer_type = "local_attention"


class LocalStaticLayer(SinkhornStaticLayer):
    _layer_type = "local_attention"
