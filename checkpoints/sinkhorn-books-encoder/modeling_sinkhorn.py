# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The Sinkhorn Transformer: a Llama-type block whose attention is Sparse Sinkhorn Attention (Tay et al., ICML 2020,
arXiv:2002.11296). Reads from top to bottom: the parts that Llama has too, layer, model, heads. The attention is in
`attention_sinkhorn.py`.

Shape letters as in `sorting_sinkhorn.py`, and `E` hidden size.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.generic import maybe_autocast, merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import OutputRecorder, capture_outputs


try:  # a folder on the Hub, or any package
    from .attention_sinkhorn import SinkhornAttention
    from .cache_sinkhorn import check_cache
    from .configuration_sinkhorn import SinkhornConfig
    from .context_sinkhorn import Context, documents_of, make_context
    from .loading_sinkhorn import check_loaded, explained
except ImportError:  # flat modules, as installed
    from context_sinkhorn import Context, documents_of, make_context

    from attention_sinkhorn import SinkhornAttention
    from cache_sinkhorn import check_cache
    from configuration_sinkhorn import SinkhornConfig
    from loading_sinkhorn import check_loaded, explained


logger = logging.get_logger(__name__)


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

    def _apply(self, fn: Callable, recurse: bool = True) -> "SinkhornRotaryEmbedding":
        """Keeps the frequencies as they are under `model.to(dtype)`: rounded, they are other phases far into a text."""
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self

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
        return self.tables(position_ids, x.dtype)

    @torch.no_grad()
    @dynamic_rope_update
    def settle(self, x: Tensor, position_ids: Tensor) -> None:
        """Chooses the frequencies, where they depend on the largest position, for all `tables` of a pass."""

    @torch.no_grad()
    def tables(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """As `forward`, with the frequencies as they are."""
        with maybe_autocast(device_type=position_ids.device.type, enabled=False):
            angles = position_ids.unsqueeze(-1).float() * self.inv_freq.to(position_ids.device, torch.float)
            angles = torch.cat((angles, angles), dim=-1)
            cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(dtype), sin.to(dtype)


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

    def forward(
        self,
        hidden_states: Tensor,
        context: Context,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        """`(B, L, E)` to `(B, L, E)`."""
        attended, _, _ = self.self_attn(self.input_layernorm(hidden_states), context, past_key_values, **kwargs)
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

    def __init__(self, config: SinkhornConfig, *args, **kwargs):
        if isinstance(config, SinkhornConfig):  # the library has words for anything else
            config.check_again()
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """
        As the library's, and a bad file is refused: in words that name it, and never for random numbers in its place.
        Pickled weights need `use_safetensors=False`.

        Raises:
            `OSError`: a file is missing, damaged, or pickled.
            `ValueError`: the weights lack a tensor that is not part of a new head, or hold NaN or infinity; or no model
                can be made of config.json.
            `RuntimeError`: a tensor has another shape than the configuration says (but `ignore_mismatched_sizes=True`).
        """
        with explained(pretrained_model_name_or_path, kwargs):
            options = kwargs if kwargs.get("use_safetensors") is not None else kwargs | {"use_safetensors": True}
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **options)

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, expected_keys=None):
        loaded = PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, expected_keys
        )
        # Not for tensors that the caller has in hand, nor for an adapter, which is part of a model.
        if state_dict is None and expected_keys is None:
            check_loaded(model, checkpoint_files, load_config, loaded[0])
        return loaded


@dataclass
class SinkhornModelOutput(BaseModelOutputWithPast):
    """
    `BaseModelOutputWithPast`, and `sort_matrices`: with `output_sort_matrices=True`, one `(B, G, N, N)` tensor for
    each layer that sorts, from the first to the last.
    """

    sort_matrices: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SinkhornCausalLMOutput(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast`, and `sort_matrices` as in `SinkhornModelOutput`."""

    sort_matrices: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SinkhornMaskedLMOutput(MaskedLMOutput):
    """`MaskedLMOutput`, and `sort_matrices` as in `SinkhornModelOutput`."""

    sort_matrices: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class SinkhornSequenceClassifierOutput(SequenceClassifierOutputWithPast):
    """`SequenceClassifierOutputWithPast`, and `sort_matrices` as in `SinkhornModelOutput`."""

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
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SinkhornModelOutput:
        """
        Args:
            input_ids: `(B, L)` tokens, any `L >= 1`; or `inputs_embeds`, `(B, L, E)`.
            attention_mask: `(B, L)`, 1 at real tokens and 0 at padding, wherever it stands; with a cache, for the tokens
                in it too. Padding changes nothing.
            position_ids: `(B, L)` or `(1, L)`, of these tokens alone; by default the rank of each token among the real
                tokens of its row. Without a mask and a cache, a position that is no larger than the one before it begins
                a new document (packed rows, as `DataCollatorWithFlattening` makes them): documents do not see each other.
            past_key_values: in a decoder, the cache of the tokens before these; `use_cache=True` makes one and returns
                it. Training starts none.
            output_attentions (`bool`): with `attn_implementation="eager"`, adds per layer `attentions`,
                `(B, H, L, L)`: the weight that each query gave to each source token, also through the sorting.
            output_sort_matrices (`bool`): adds `sort_matrices`, `(B, G, N, N)` for each layer that sorts; with a cache
                that is not empty, the rows of the blocks that the new tokens touch.
            is_causal (`bool`): refused where it is not what the configuration says.
        """
        if kwargs.pop("is_causal", None) not in (None, self.config.is_decoder):
            raise ValueError(
                f"`is_causal` differs from `config.is_decoder={self.config.is_decoder}`, which decides about the sorting too: "
                "make a model with the other `is_decoder`."
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        if input_ids is not None and input_ids.dim() != 2:
            raise ValueError(
                f"`input_ids` has shape {tuple(input_ids.shape)}: give (batch, tokens); one row is `input_ids[None]`."
            )
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if 0 in inputs_embeds.shape:
            raise ValueError(f"The input has shape {tuple(inputs_embeds.shape[:2])}: give at least one row and token.")
        _check_positions(position_ids, inputs_embeds)
        if kwargs.get("output_attentions") and self.config._attn_implementation != "eager":
            logger.warning_once(
                "`output_attentions=True` needs the eager implementation: call "
                '`model.set_attn_implementation("eager")`. No attention maps are returned.'
            )
        documents = None
        if position_ids is not None and attention_mask is None and past_key_values is None:
            documents = self._documents(position_ids, inputs_embeds.shape[0])
        past_key_values = self._cache_to_use(past_key_values, use_cache and documents is None)
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        if isinstance(past_length, Tensor) and not is_tracing(past_length):
            past_length = int(past_length)
        attention_mask = _check_mask(attention_mask, inputs_embeds, past_length)
        if past_key_values is not None and not is_tracing(inputs_embeds):
            check_cache(past_key_values, self.config.layer_types, attention_mask, inputs_embeds)
        if self.rotary_emb.rope_type != "default":
            positions = position_ids
            if positions is None:  # ranks: the largest is enough
                counts = inputs_embeds.shape[1] + past_length if attention_mask is None else attention_mask.sum(-1)
                positions = torch.zeros_like(inputs_embeds[:, :1, 0], dtype=torch.long) + (counts - 1)
            self.rotary_emb.settle(inputs_embeds, positions)
        context = make_context(
            self.config,
            lambda positions: self.rotary_emb.tables(positions, inputs_embeds.dtype),
            inputs_embeds.shape[:2],
            inputs_embeds.device,
            attention_mask,
            position_ids,
            documents,
            past_key_values,
            past_length,
            maps=kwargs.get("output_attentions", self.config.output_attentions),
            look=not is_tracing(inputs_embeds),
        )
        hidden_states = self.dropout(inputs_embeds)
        for layer in self.layers:
            hidden_states = layer(hidden_states, context, past_key_values=past_key_values, **kwargs)
        return SinkhornModelOutput(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def _documents(self, position_ids: Tensor, batch: int) -> Tensor | None:
        """`(B, L)`, of packed rows, the number of each token's document."""
        documents = packed_documents(position_ids)
        if documents is not None and "sortcut_attention" in self.config.layer_types:
            raise ValueError(
                "'sortcut_attention' reads the same sorted blocks everywhere in a row, so it cannot read packed rows "
                "(`position_ids` that start again): give each document a row of its own, with an `attention_mask`."
            )
        return None if documents is None else documents.expand(batch, -1)

    def _cache_to_use(self, past_key_values: Cache | None, use_cache: bool | None) -> Cache | None:
        if not self.config.is_decoder:
            if past_key_values is not None:
                raise ValueError("`past_key_values` needs a decoder: use a config with `is_decoder=True`.")
            return None
        if self.training and self.gradient_checkpointing and past_key_values is not None:
            raise ValueError(
                "`past_key_values` cannot be used under activation checkpointing, which runs layers twice: leave it out "
                "(`generate(use_cache=False)`), or call `model.activation_checkpointing_disable()` or `model.eval()`."
            )
        # Training looks at whole rows: a cache would only cost.
        if past_key_values is None and use_cache and not self.training:
            return DynamicCache(config=self.config)
        return past_key_values


def packed_documents(position_ids: Tensor) -> Tensor | None:
    """`documents_of`, or where a graph is made a check that there is one a row: their number would be a shape."""
    if not is_tracing(position_ids):
        return documents_of(position_ids)
    torch._assert_async(
        (position_ids.diff(dim=-1) > 0).all(),
        "Packed rows (`position_ids` that start again) cannot be read by a compiled or exported model.",
    )
    return None


def _check_positions(position_ids: Tensor | None, inputs_embeds: Tensor) -> None:
    """Raises where there is not one position for each new token; while a graph is made, sizes cannot be compared."""
    if position_ids is None or is_tracing(position_ids):
        return
    batch, num_tokens = inputs_embeds.shape[:2]
    if position_ids.shape not in ((batch, num_tokens), (1, num_tokens)):
        raise ValueError(
            f"`position_ids` has shape {tuple(position_ids.shape)}, but the input needs {(batch, num_tokens)} or "
            f"{(1, num_tokens)}: one position for each of these tokens, none for those in a cache."
        )


def _check_mask(attention_mask: Tensor | None, inputs_embeds: Tensor, past_length: int | Tensor) -> Tensor | None:
    """The mask, or `None` where it masks nothing. Raises where it is not one number per token."""
    if attention_mask is None:
        return None
    batch, num_tokens = inputs_embeds.shape[:2]
    expected = (batch, num_tokens + past_length)
    if attention_mask.dim() != 2 or (not is_tracing(attention_mask) and attention_mask.shape != expected):
        in_cache = f" of each row, the {past_length} in the cache included" if past_length else " of each row"
        raise ValueError(
            f"`attention_mask` has shape {tuple(attention_mask.shape)}, but the input needs {expected}: one 0 (padding) "
            f"or 1 per token{in_cache}."
        )
    if is_tracing(attention_mask):
        return attention_mask  # the answers below would be burnt into the graph
    if attention_mask.is_floating_point() and bool(((attention_mask != 0) & (attention_mask != 1)).any()):
        raise ValueError(
            "`attention_mask` holds numbers other than 0 (padding) and 1: give what the tokenizer gives, not a mask to be "
            "added to scores."
        )
    return None if bool(attention_mask.all()) else attention_mask


# --------------------------------------------------------------------------------------------------------------------
# Heads
# --------------------------------------------------------------------------------------------------------------------


class SinkhornForCausalLM(SinkhornPreTrainedModel, GenerationMixin):
    """The Sinkhorn Transformer with a language modelling head that predicts the next token."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: SinkhornConfig):
        if not config.is_decoder:
            config = copy.deepcopy(config)  # the caller's may be for an encoder too
            config.is_decoder = True
        super().__init__(config)
        self.model = SinkhornModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SinkhornCausalLMOutput:
        """
        `labels` `(B, L)`: the tokens themselves, -100 where none is to be predicted; each is predicted from those before
        it. `logits_to_keep`: how many last tokens to compute logits for, or which; 0 for all. Returns `logits`
        `(B, L, vocab_size)`.
        """
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return SinkhornCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            sort_matrices=outputs.sort_matrices,
        )

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None, **kwargs: Any) -> Tensor | None:
        """The mask as it is. The library would make one per layer type in advance, for those types that it knows."""
        return attention_mask


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
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds=inputs_embeds, **kwargs)
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
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SinkhornSequenceClassifierOutput:
        """
        `labels`: `(B,)` classes, `(B, num_labels)` floats for several labels, or `(B,)` or `(B, num_labels)` floats for
        a regression (`config.problem_type`). Returns `logits` `(B, num_labels)`.

        Without an `attention_mask`, tokens equal to `config.pad_token_id` count as real.
        """
        if position_ids is not None and attention_mask is None and past_key_values is None:
            if packed_documents(position_ids) is not None:
                raise ValueError(
                    "`position_ids` start again, so a row holds several documents, but this model gives one prediction a "
                    "row: give each document a row of its own, with an `attention_mask`."
                )
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        num_tokens = outputs.last_hidden_state.shape[1]
        if past_key_values is not None and past_key_values.get_seq_length() > num_tokens:
            if self.config.pooling != "last":
                raise ValueError(
                    f"`classifier_pooling='{self.config.pooling}'` reads all tokens, and those in the cache are not here: "
                    "give the whole document, or use a model with `classifier_pooling='last'`."
                )
            attention_mask = None if attention_mask is None else attention_mask[:, -num_tokens:]
        pooled = pool_tokens(outputs.last_hidden_state, attention_mask, self.config.pooling)
        logits = self.score(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
            num_items = kwargs.get("num_items_in_batch")
            if num_items is not None and self.config.problem_type != "single_label_classification":
                # The library's squared error and its loss of several labels are means over this batch, whatever the
                # Trainer says of the batches that make up a step.
                loss = loss * (labels.numel() / num_items)
        return SinkhornSequenceClassifierOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            sort_matrices=outputs.sort_matrices,
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
        total = hidden_states.masked_fill(~is_real.unsqueeze(-1), 0).sum(
            1, dtype=torch.promote_types(hidden_states.dtype, torch.float32)
        )
        return (total / is_real.sum(1, keepdim=True).clamp(min=1)).to(hidden_states.dtype)
    order = torch.arange(is_real.shape[1], device=is_real.device)
    if pooling == "cls":
        order = -order
    index = order.masked_fill(~is_real, -is_real.shape[1]).argmax(1)
    return hidden_states[torch.arange(index.shape[0], device=index.device), index]


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
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds=inputs_embeds, **kwargs)
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
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds=inputs_embeds, **kwargs)
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
    (AutoModelForCausalLM, SinkhornForCausalLM),
    (AutoModelForMaskedLM, SinkhornForMaskedLM),
    (AutoModelForSequenceClassification, SinkhornForSequenceClassification),
    (AutoModelForTokenClassification, SinkhornForTokenClassification),
    (AutoModelForQuestionAnswering, SinkhornForQuestionAnswering),
):
    _auto_class.register(SinkhornConfig, _model_class, exist_ok=True)
    # `save_pretrained` then copies this code into the folder, so that it loads where the package is not installed.
    _model_class.register_for_auto_class(_auto_class.__name__)

__all__ = [
    "SinkhornForCausalLM",
    "SinkhornForMaskedLM",
    "SinkhornForQuestionAnswering",
    "SinkhornForSequenceClassification",
    "SinkhornForTokenClassification",
    "SinkhornModel",
    "SinkhornPreTrainedModel",
]
