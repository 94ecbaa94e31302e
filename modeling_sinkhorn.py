# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The Sinkhorn Transformer: a Llama-type block whose attention is Sparse Sinkhorn Attention (Tay et al., ICML 2020,
arXiv:2002.11296). Model and heads; a layer is in `layer_sinkhorn.py`.

Shape letters as in `sorting_sinkhorn.py`, and `E` hidden size.
"""

import copy
from functools import partial

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
from transformers.cache_utils import Cache
from transformers.modeling_utils import slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import capture_outputs


try:  # a folder on the Hub, or any package
    from .classification_sinkhorn import classifier_dropout, mask_of_new_tokens, pool_tokens, scale_to_step
    from .compatibility_sinkhorn import cache_field, cache_of, check_token_types, takes_known_arguments
    from .configuration_sinkhorn import SinkhornConfig
    from .generation_sinkhorn import SinkhornGenerationMixin
    from .inputs_sinkhorn import (
        cache_to_use,
        check_arguments,
        check_one_document,
        layout_inputs,
        make_layout,
        packed_documents,
    )
    from .layer_sinkhorn import SinkhornLayer
    from .norm_sinkhorn import SinkhornRMSNorm
    from .outputs_sinkhorn import (
        SinkhornCausalLMOutput,
        SinkhornMaskedLMOutput,
        SinkhornModelOutput,
        SinkhornQuestionAnsweringOutput,
        SinkhornSequenceClassifierOutput,
        SinkhornTokenClassifierOutput,
    )
    from .pretrained_sinkhorn import SinkhornPreTrainedModel
    from .rotary_sinkhorn import SinkhornRotaryEmbedding
except ImportError:  # flat modules, as installed
    from classification_sinkhorn import classifier_dropout, mask_of_new_tokens, pool_tokens, scale_to_step
    from compatibility_sinkhorn import cache_field, cache_of, check_token_types, takes_known_arguments
    from configuration_sinkhorn import SinkhornConfig
    from generation_sinkhorn import SinkhornGenerationMixin
    from inputs_sinkhorn import (
        cache_to_use,
        check_arguments,
        check_one_document,
        layout_inputs,
        make_layout,
        packed_documents,
    )
    from layer_sinkhorn import SinkhornLayer
    from norm_sinkhorn import SinkhornRMSNorm
    from outputs_sinkhorn import (
        SinkhornCausalLMOutput,
        SinkhornMaskedLMOutput,
        SinkhornModelOutput,
        SinkhornQuestionAnsweringOutput,
        SinkhornSequenceClassifierOutput,
        SinkhornTokenClassifierOutput,
    )
    from pretrained_sinkhorn import SinkhornPreTrainedModel
    from rotary_sinkhorn import SinkhornRotaryEmbedding


logger = logging.get_logger(__name__)

# What heads hand on to the model without a parameter of their own.
MODEL_ARGUMENTS = ("cache", "use_cache")


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

    @takes_known_arguments()
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SinkhornModelOutput:
        """
        Args:
            input_ids: `(B, L)` tokens, any `L >= 1`; or `inputs_embeds`, `(B, L, E)`.
            attention_mask: `(B, L)`, 1 at real tokens and 0 at padding, wherever it is; with a cache, for the tokens
                in it too. Padding changes nothing. With a static cache it may also have the length of that.
            position_ids: `(B, L)` or `(1, L)`, of these tokens only; by default the rank of each token among the real
                tokens of its row. Without a mask and a cache, a position that is no larger than the one before it
                begins a new document (packed rows, as `DataCollatorWithFlattening` makes them): documents do not see
                each other.
            cache: in a decoder, the cache of the tokens before these; `use_cache=True` makes one and returns
                it. Training does not make one.
            output_attentions (`bool`): with `attn_implementation="eager"`, adds per layer `attentions`,
                `(B, H, L, L)`: the weight that each query gave to each source token, also through the sorting. The
                outputs are computed from them, so that gradients with respect to them exist.
            output_sort_matrices (`bool`): adds `sort_matrices`, `(B, G, N, N)` for each layer that sorts; with a cache
                that is not empty, the rows of the blocks that the new tokens touch. Where tokens choose, `(B, G, L, N)`.
            is_causal (`bool`): refused where it is not what the configuration says.
            token_type_ids: refused unless all are 0; the model has no token types.
            past_key_values: the name that `cache` had before Transformers 5.24.
        """
        is_causal = kwargs.pop("is_causal", None)
        check_token_types(kwargs.pop("token_type_ids", None))
        check_arguments(self.config, input_ids, inputs_embeds, position_ids, is_causal)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if kwargs.get("output_attentions") and self.config._attn_implementation != "eager":
            logger.warning_once(
                "`output_attentions=True` needs the eager implementation: call "
                '`model.set_attn_implementation("eager")`. No attention maps are returned.'
            )
        documents = None
        if position_ids is not None and attention_mask is None and cache is None:
            documents = packed_documents(position_ids, self.config.layer_types)
        # As in the library: without gradients nothing runs twice.
        recomputes = self.training and self.gradient_checkpointing and torch.is_grad_enabled()
        cache = cache_to_use(self.config, cache, use_cache and documents is None, self.training, recomputes)
        inputs = layout_inputs(self.config, inputs_embeds, attention_mask, position_ids, documents, cache)
        self.rotary_emb.update_for(inputs_embeds, inputs.attention_mask, position_ids, inputs.past_length)
        layout = make_layout(
            self.config,
            inputs,
            partial(self.rotary_emb.tables, dtype=inputs_embeds.dtype),
            cache,
            maps=kwargs.get("output_attentions", self.config.output_attentions),
            may_read_values=not is_tracing(inputs_embeds),
        )
        hidden_states = self.dropout(inputs_embeds)
        for layer in self.layers:
            hidden_states = layer(hidden_states, layout, cache=cache, **kwargs)
        return SinkhornModelOutput(
            last_hidden_state=self.norm(hidden_states), **cache_field(cache if use_cache else None)
        )


# --------------------------------------------------------------------------------------------------------------------
# Heads
# --------------------------------------------------------------------------------------------------------------------


class SinkhornForCausalLM(SinkhornPreTrainedModel, SinkhornGenerationMixin):
    """The Sinkhorn Transformer with a language modelling head that predicts the next token."""

    _head_loss = "ForCausalLM"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: SinkhornConfig):
        if not config.is_decoder:
            config = copy.deepcopy(config)  # the caller's may be for an encoder too
            config.is_decoder = True
        super().__init__(config)
        self.model = SinkhornModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @takes_known_arguments(*MODEL_ARGUMENTS)
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SinkhornCausalLMOutput:
        """
        `labels` `(B, L)`: the tokens themselves, -100 where none is to be predicted; each is predicted from those
        before it. `logits_to_keep`: how many last tokens to compute logits for, or which; 0 for all. Returns `logits`
        `(B, L, vocab_size)`.
        """
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            cache=cache,
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
            **cache_field(cache_of(outputs)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            sort_matrices=outputs.sort_matrices,
        )


class SinkhornForMaskedLM(SinkhornPreTrainedModel):
    """The Sinkhorn Transformer with a language modelling head on every token."""

    _head_loss = "ForMaskedLM"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: SinkhornConfig):
        super().__init__(config)
        if config.is_decoder:
            raise ValueError("SinkhornForMaskedLM reads both directions: use a config with `is_decoder=False`.")
        self.model = SinkhornModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @takes_known_arguments(*MODEL_ARGUMENTS)
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

    _head_loss = "ForSequenceClassification"

    def __init__(self, config: SinkhornConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = SinkhornModel(config)
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @takes_known_arguments(*MODEL_ARGUMENTS)
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SinkhornSequenceClassifierOutput:
        """
        `labels`: `(B,)` classes, `(B, num_labels)` floats for several labels, or `(B,)` or `(B, num_labels)` floats
        for a regression (`config.problem_type`). Returns `logits` `(B, num_labels)`.

        Without an `attention_mask`, tokens equal to `config.pad_token_id` count as real.
        """
        if position_ids is not None and attention_mask is None and cache is None:
            check_one_document(position_ids)
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        if cache is not None:
            num_tokens = outputs.last_hidden_state.shape[1]
            attention_mask = mask_of_new_tokens(self.config, attention_mask, cache.get_seq_length(), num_tokens)
        pooled = pool_tokens(outputs.last_hidden_state, attention_mask, self.config.pooling)
        logits = self.score(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
            loss = scale_to_step(loss, labels, self.config.problem_type, kwargs.get("num_items_in_batch"))
        return SinkhornSequenceClassifierOutput(
            loss=loss,
            logits=logits,
            **cache_field(cache_of(outputs)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            sort_matrices=outputs.sort_matrices,
        )


class SinkhornForTokenClassification(SinkhornPreTrainedModel):
    """The Sinkhorn Transformer with one class per token."""

    _head_loss = "ForTokenClassification"

    def __init__(self, config: SinkhornConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = SinkhornModel(config)
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @takes_known_arguments(*MODEL_ARGUMENTS)
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

    _head_loss = "ForQuestionAnswering"

    def __init__(self, config: SinkhornConfig):
        super().__init__(config)
        self.model = SinkhornModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @takes_known_arguments(*MODEL_ARGUMENTS)
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
        """`start_positions`, `end_positions` `(B,)`: tokens. Returns `start_logits`, `end_logits`, `(B, L)` each."""
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
