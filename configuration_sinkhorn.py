# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the Sinkhorn Transformer: Sparse Sinkhorn Attention (Tay et al., ICML 2020, arXiv:2002.11296)."""

import math
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters


# The docstring of the class explains each layer type.
LAYER_TYPES = (
    "sinkhorn_attention",
    "sortcut_attention",
    "mixture_attention",
    "local_attention",
    "full_attention",
)
# The key of `layer_types` in config.json. Some programs read a config.json without this code (tokenizers, the Trainer
# when it resumes, servers), by the library's base class, which refuses a `layer_types` with names that it does not know
# and has no way to register others. In memory it must be `layer_types`: by it caches choose their layers.
SAVED_LAYER_TYPES = "attention_types"

SORT_NETS = ("linear", "mlp", "bilinear", "keys", "index")
# These compare queries with keys, and learn nothing or little of their own.
KEY_SORT_NETS = ("keys", "index")
SORT_GRANULARITIES = ("block", "token")
SORT_POOLINGS = ("mean", "sum", "first")
SORT_ASSIGNMENTS = ("soft", "hard")
ATTENTION_BIASES = (False, True, "qkv")
CAUSAL_BALANCINGS = ("equality", "capacity")
CLASSIFIER_POOLINGS = ("mean", "last", "cls")

# Far above any real model. A larger value comes from a damaged or manipulated file, and is refused before it takes all
# memory (sizes of weights and of blocks) or hours (layers, iterations).
LARGEST = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"), 2**30),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim", "block_size"), 2**14),
    **dict.fromkeys(("key_piece_size", "index_head_dim"), 2**14),
    **dict.fromkeys(
        ("num_hidden_layers", "num_sorted_blocks", "num_local_blocks", "num_sink_blocks", "sortcut_blocks"), 2**10
    ),
    "sinkhorn_iterations": 1000,
    "num_labels": 10**6,
}
DTYPES = ("float16", "bfloat16", "float32", "float64")

AUTO_MAP = {
    "AutoConfig": "configuration_sinkhorn.SinkhornConfig",
    "AutoModel": "modeling_sinkhorn.SinkhornModel",
    "AutoModelForCausalLM": "modeling_sinkhorn.SinkhornForCausalLM",
    "AutoModelForSequenceClassification": "modeling_sinkhorn.SinkhornForSequenceClassification",
    "AutoModelForMaskedLM": "modeling_sinkhorn.SinkhornForMaskedLM",
    "AutoModelForTokenClassification": "modeling_sinkhorn.SinkhornForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_sinkhorn.SinkhornForQuestionAnswering",
}


class SinkhornConfigError(StrictDataclassError, ValueError):
    """No model can be made of a configuration."""


@strict
class SinkhornConfig(PreTrainedConfig):
    r"""
    Configuration of every Sinkhorn model. The block around the attention is Llama's (RMSNorm before each part, RoPE,
    gated MLP, grouped key/value heads), so Llama-type weights map onto it name by name; what is new is how attention
    chooses what to read.

    The fields that other Transformers models share (`vocab_size`, `hidden_size`, `num_key_value_heads`,
    `rope_parameters` ...) mean what they mean there. The others:

    Args:
        attention_bias (`bool` or `str`, defaults to `False`):
            Whether the projections of attention have a bias; `"qkv"`: those of queries, keys and values alone (Qwen2).
        qk_norm (`bool`, defaults to `False`):
            A norm of the query and the key of each head, before they are rotated (Qwen3).
        block_size (`int`, defaults to 64):
            Tokens per block. Any sequence length works; the last block may be partly filled.
        layer_types (`list[str]`, *optional*):
            One entry per layer, all `"sinkhorn_attention"` by default.
            `"sinkhorn_attention"`: the sorted block(s) and the local blocks, in one softmax.
            `"sortcut_attention"` (encoder only): every query attends to the first `sortcut_blocks` sorted blocks.
            `"mixture_attention"`: Sinkhorn attention plus full attention, the sum of the two outputs.
            `"local_attention"`: the local blocks alone. `"full_attention"`: ordinary attention.
            In config.json and in `to_dict()` it is `attention_types`. Both are read, `layer_types` first.
        sort_granularity (`str`, defaults to `"block"`):
            Who chooses what is sorted beside it. `"block"`: each block, once for all its tokens (the paper). `"token"`:
            each token for itself, so that a decoder can look up what the token before it asked for. Needs
            `sort_assignment="hard"`.
        sort_net (`str`, defaults to `"bilinear"`):
            What sorting logits are made of. `"linear"` and `"mlp"` are the paper's: they read block descriptors, and
            fix the number of blocks at `max_position_embeddings // block_size`. `"bilinear"` compares a block (or a
            token) with each block and has no limit. `"keys"` has no parameters: it estimates which share of a token's
            attention would fall to each block, from its queries and the mean keys of pieces of blocks. `"index"` is
            the same token by token in few dimensions, which are learned. The last two need `sort_assignment="hard"`.
        sort_pooling (`str`, defaults to `"mean"`):
            A block's descriptor is the `"mean"` of its tokens, or their `"sum"` as in the paper. In a decoder it is
            the same over all tokens up to and including the block's first. `"first"` is the block's first token alone.
        sort_assignment (`str`, defaults to `"soft"`):
            `"soft"` mixes blocks by the sort matrix (the paper; quadratic in the number of blocks), `"hard"` gathers
            the `num_sorted_blocks` best blocks whole (reading is linear in length; straight-through gradient).
        sinkhorn_iterations (`int`, defaults to 8):
            Row-and-column normalisations of the sorting logits. One last row normalisation always follows.
        causal_balancing (`str`, defaults to `"equality"`):
            What a column normalisation does in a decoder. `"equality"` brings the sum of a column, over the rows so
            far, to 1: the newest block, which no row had before, then always gets the largest weight, for any logits,
            and sorting acts much like a window of two blocks. `"capacity"` scales a column down where that sum
            is above 1 and leaves it below, so that a block may read from far back; give the block before as a local
            one then, `num_local_blocks=2`.
        sinkhorn_temperature (`float`, defaults to 0.75):
            Divides the sorting logits; lower is closer to a permutation.
        gumbel_noise (`bool`, defaults to `True`):
            Adds Gumbel noise to the sorting logits in training mode. Never in evaluation.
        num_sorted_blocks (`int`, defaults to 1):
            Blocks sorted next to each block; more than one needs `sort_assignment="hard"`.
        num_local_blocks (`int`, defaults to 1):
            Local blocks: the block itself and `num_local_blocks - 1` before it (an encoder: on each side).
        num_sink_blocks (`int`, defaults to 0):
            Blocks at the start of the text that every token reads beside its local ones. Pretrained decoders need
            one: much of their attention rests on the first tokens.
        key_piece_size (`int`, defaults to 16):
            With `sort_net="keys"`: tokens whose keys are averaged. `block_size` must be a multiple of it.
        index_head_dim (`int`, defaults to 16):
            With `sort_net="index"`: dimensions in which queries and keys are compared.
        sort_capacity (`float`, defaults to 2.0):
            With `sort_granularity="token"`, where `sinkhorn_iterations` is above 0: how many times its even share of
            the tokens so far a block may serve.
        sortcut_blocks (`int`, defaults to 2):
            Blocks that a `"sortcut_attention"` layer keeps.
        classifier_pooling (`str`, *optional*):
            What `SinkhornForSequenceClassification` reads: the `"mean"` over real tokens, the `"last"` real token or
            the first real one (`"cls"`). By default `"mean"` for an encoder and `"last"` for a decoder.
        classifier_dropout (`float`, *optional*):
            Dropout before the classification layers; `hidden_dropout` where not given.
        is_decoder (`bool`, defaults to `False`):
            Causal attention and causal sorting.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: for a value or a combination that cannot work; it names the
        field and says what to change. `ValueError` for a wrong number of layers or labels, or a wrong `dtype`. From a
        file, `SinkhornConfigError`, which is both, and names the file too.

    Example:

    ```python
    >>> from configuration_sinkhorn import SinkhornConfig

    >>> config = SinkhornConfig(hidden_size=256, num_attention_heads=4, num_hidden_layers=4, block_size=32)
    >>> config.layer_types[0]
    'sinkhorn_attention'
    ```"""

    model_type = "sinkhorn"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]
    attribute_map = {SAVED_LAYER_TYPES: "layer_types"}

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    initializer_range: float | int = 0.02
    rms_norm_eps: float = 1e-5
    rope_parameters: RopeParameters | dict | None = None
    attention_bias: bool | str = False
    qk_norm: bool = False
    mlp_bias: bool = False
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    classifier_dropout: float | int | None = None
    classifier_pooling: str | None = None
    is_decoder: bool = False
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    block_size: int = 64
    layer_types: list[str] | None = None
    sort_granularity: str = "block"
    sort_net: str = "bilinear"
    sort_pooling: str = "mean"
    sort_assignment: str = "soft"
    sinkhorn_iterations: int = 8
    causal_balancing: str = "equality"
    sinkhorn_temperature: float | int = 0.75
    gumbel_noise: bool = True
    num_sorted_blocks: int = 1
    num_local_blocks: int = 1
    num_sink_blocks: int = 0
    sortcut_blocks: int = 2
    key_piece_size: int = 16
    index_head_dim: int = 16
    sort_capacity: float | int = 2.0

    def __post_init__(self, **kwargs: Any) -> None:
        # These are used before validation: lists of that length are made.
        for name, value in (("num_hidden_layers", self.num_hidden_layers), ("num_labels", kwargs.get("num_labels"))):
            if value is not None and not (isinstance(value, int) and value <= LARGEST[name]):
                raise ValueError(f"`{name}` must be a number, and at most {LARGEST[name]}, got {value!r}.")
        dtype = kwargs.get("torch_dtype") if self.dtype is None else self.dtype
        if not (dtype is None or isinstance(dtype, torch.dtype) or dtype in DTYPES):
            raise ValueError(f"`dtype` must be one of {list(DTYPES)}, got {dtype!r}.")
        if self.head_dim is None and self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads == 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        saved = kwargs.pop(SAVED_LAYER_TYPES, None)
        if self.layer_types is None:  # otherwise given next to what was saved, as in `config.to_dict() | {...}`
            self.layer_types = saved
        if self.layer_types is None:
            self.layer_types = ["sinkhorn_attention"] * self.num_hidden_layers
        super().__post_init__(**kwargs)
        # A folder saved by any head must open through every Auto class, so all of them are listed, not just the saver.
        if getattr(self, "auto_map", None) is None:
            self.auto_map = dict(AUTO_MAP)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs: Any) -> "SinkhornConfig":
        """As the library's. The errors of `from_dict` name the file too."""
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except SinkhornConfigError as error:
            raise SinkhornConfigError(f"{pretrained_model_name_or_path}: {error}") from error

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        As the library's.

        Raises:
            `OSError`: there is no config.json, or it holds no fields. The library would use the defaults.
        """
        name = pretrained_model_name_or_path
        get_again = "Copy or download it again, or write one with `config.save_pretrained`."
        try:
            fields, kwargs = super().get_config_dict(name, **kwargs)
        except OSError:
            raise
        except Exception as error:
            raise OSError(
                f"The config.json of {name} cannot be read ({describe_error(error)}). {get_again}"
            ) from error
        if not isinstance(fields, dict) or not fields:
            raise OSError(f"There is no config.json in {name}, or it holds no fields. {get_again}")
        return fields, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "SinkhornConfig":
        """
        As the library's.

        Raises:
            `SinkhornConfigError`: for any wrong field, with the name of the file.
        """
        name = kwargs.get("name_or_path")  # `AutoConfig` gives it, which calls this method directly
        try:
            made = super().from_dict(dict(config_dict), **kwargs)
            # The library sets other arguments on the finished configuration, and checks no more than their types.
            (made[0] if isinstance(made, tuple) else made).validate()
            return made
        except Exception as error:
            raise SinkhornConfigError(
                f"The configuration{f' of {name}' if name else ''} (config.json and the arguments given with it) is "
                f"refused: {describe_error(error)}"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """As the library's, which is what is saved too, with `layer_types` under its name in files."""
        fields = super().to_dict()
        return {SAVED_LAYER_TYPES if name == "layer_types" else name: value for name, value in fields.items()}

    @property
    def base_model_tp_plan(self) -> dict[str, str]:
        """How projections are divided between processes, by heads and feed-forward units: those that the model has."""
        sort_net = ()
        if not {"local_attention", "full_attention"}.issuperset(self.layer_types):
            sort_net = {"bilinear": ("row_proj", "column_proj"), "keys": (), "index": ()}.get(self.sort_net, ("proj",))
        norms = ("q_norm", "k_norm") if self.qk_norm else ()
        return {
            **{f"layers.*.self_attn.{name}": "replicated_with_grad_allreduce" for name in norms},
            "layers.*.self_attn.q_proj": "colwise",
            "layers.*.self_attn.k_proj": "colwise",
            "layers.*.self_attn.v_proj": "colwise",
            "layers.*.self_attn.o_proj": "rowwise",
            **{f"layers.*.self_attn.sort_net.{name}": "colwise" for name in sort_net},
            "layers.*.mlp.gate_proj": "colwise",
            "layers.*.mlp.up_proj": "colwise",
            "layers.*.mlp.down_proj": "rowwise",
        }

    @property
    def max_num_blocks(self) -> int:
        """Blocks that a `"linear"` or `"mlp"` SortNet has outputs for."""
        return self.max_position_embeddings // self.block_size

    @property
    def pooling(self) -> Literal["mean", "last", "cls"]:
        """`classifier_pooling` with its default filled in, which follows `is_decoder`."""
        return self.classifier_pooling or ("last" if self.is_decoder else "mean")

    def check_again(self) -> None:
        """
        Refuses fields that were set to wrong values after the configuration was made. Not `validate()`: that includes
        the library's check of `output_attentions`, which fails in a model whose implementation is already chosen.

        Raises:
            `SinkhornConfigError`: it names the field and says what to change.
        """
        try:
            self.validate_architecture()
            self.validate_layer_type()
        except (ValueError, TypeError) as error:
            raise SinkhornConfigError(str(error)) from error

    def validate_layer_type(self) -> None:
        """`layer_types` has one known name per layer. Replaces the library's check, whose list of names is closed."""
        unknown = sorted(set(self.layer_types) - set(LAYER_TYPES))
        if unknown:
            raise ValueError(f"`layer_types` holds {unknown}; each entry must be one of {list(LAYER_TYPES)}.")
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"`layer_types` has {len(self.layer_types)} entries for `num_hidden_layers={self.num_hidden_layers}`; "
                "give one entry per layer, or leave it out."
            )
        if self.is_decoder and "sortcut_attention" in self.layer_types:
            raise ValueError(
                "`layer_types` holds 'sortcut_attention' in a decoder (`is_decoder=True`): its queries would see "
                "later tokens. Use 'sinkhorn_attention', or `is_decoder=False`."
            )

    def validate_architecture(self) -> None:
        """Refuses what cannot work; each error names the field and says what to change."""
        self._validate_sizes()
        self._validate_choices()
        self._validate_sorting()
        self._validate_rope()

    def _validate_sizes(self) -> None:
        positive = (
            "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
            "head_dim max_position_embeddings block_size num_sorted_blocks num_local_blocks sortcut_blocks "
            "key_piece_size index_head_dim"
        )
        for name in positive.split():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
            if value is not None and value > LARGEST[name]:
                raise ValueError(f"`{name}` must be at most {LARGEST[name]}, got {value}.")
        if not 0 <= self.num_sink_blocks <= LARGEST["num_sink_blocks"]:
            raise ValueError(
                f"`num_sink_blocks` must be from 0 to {LARGEST['num_sink_blocks']}, got {self.num_sink_blocks}."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"`num_attention_heads` ({self.num_attention_heads}) is not a multiple of `num_key_value_heads` "
                f"({self.num_key_value_heads}); query heads share key/value heads in equal groups."
            )
        if self.head_dim is None:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) is not a multiple of `num_attention_heads` "
                f"({self.num_attention_heads}); change one of them, or set `head_dim`."
            )
        if self.head_dim % 2:
            raise ValueError(f"`head_dim` must be even for rotary positions, got {self.head_dim}.")
        for name in ("hidden_dropout", "attention_dropout", "classifier_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {rate}.")
        if not 0 < self.rms_norm_eps < math.inf:
            raise ValueError(f"`rms_norm_eps` must be above 0 and finite, got {self.rms_norm_eps}.")
        if not 0 <= self.initializer_range < math.inf:
            raise ValueError(f"`initializer_range` must be 0 or more and finite, got {self.initializer_range}.")
        if self.pad_token_id is not None and not -self.vocab_size <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"`pad_token_id` ({self.pad_token_id}) is none of the `vocab_size={self.vocab_size}` tokens."
            )

    def _validate_choices(self) -> None:
        choices = {
            "attention_bias": ATTENTION_BIASES,
            "sort_granularity": SORT_GRANULARITIES,
            "sort_net": SORT_NETS,
            "sort_pooling": SORT_POOLINGS,
            "sort_assignment": SORT_ASSIGNMENTS,
            "causal_balancing": CAUSAL_BALANCINGS,
            "classifier_pooling": (None, *CLASSIFIER_POOLINGS),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {list(allowed)}, got {getattr(self, name)!r}.")
        classes = self.architectures
        if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
            raise ValueError(f"`architectures` must be a list of class names, got {classes!r}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be one of {sorted(ACT2FN)}, got {self.hidden_act!r}.")

    def _validate_sorting(self) -> None:
        if self.sinkhorn_iterations < 0:
            raise ValueError(
                f"`sinkhorn_iterations` must be 0 or more, got {self.sinkhorn_iterations}; 0 is a plain row softmax."
            )
        if self.sinkhorn_iterations > LARGEST["sinkhorn_iterations"]:
            raise ValueError(
                f"`sinkhorn_iterations` must be at most {LARGEST['sinkhorn_iterations']}, got "
                f"{self.sinkhorn_iterations}."
            )
        if not 1e-6 <= self.sinkhorn_temperature <= 1e6:  # beyond, the logits overflow
            raise ValueError(f"`sinkhorn_temperature` must be above 0 (1e-6 to 1e6), got {self.sinkhorn_temperature}.")
        if self.sort_assignment == "soft" and self.num_sorted_blocks > 1:
            raise ValueError(
                f"`num_sorted_blocks={self.num_sorted_blocks}` needs `sort_assignment='hard'`: a soft sort gives one "
                "mixed block per block."
            )
        if not 0 < self.sort_capacity <= 1e6:
            raise ValueError(f"`sort_capacity` must be above 0 (at most 1e6), got {self.sort_capacity}.")
        self._validate_granularity()
        if self.sort_net == "keys" and self.block_size % self.key_piece_size:
            raise ValueError(
                f"`block_size` ({self.block_size}) is not a multiple of `key_piece_size` ({self.key_piece_size}), the "
                "tokens whose keys are averaged: change one of them, or use `sort_net='index'`."
            )
        if self.sort_net in ("linear", "mlp") and self.max_num_blocks < 1:
            raise ValueError(
                f"`max_position_embeddings` ({self.max_position_embeddings}) is below `block_size` "
                f"({self.block_size}), which leaves a '{self.sort_net}' SortNet no block; raise the first, lower the "
                "second, or use `sort_net='bilinear'`."
            )

    def _validate_granularity(self) -> None:
        by = f"`sort_granularity='{self.sort_granularity}'` with `sort_net='{self.sort_net}'`"
        if self.sort_granularity == "block" and self.sort_net not in KEY_SORT_NETS:
            return
        if self.sort_assignment != "hard":
            raise ValueError(
                f"{by} needs `sort_assignment='hard'`, which reads whole blocks: set it, or use "
                "`sort_granularity='block'` and `sort_net='bilinear'` for a soft sort."
            )
        if "sortcut_attention" in self.layer_types:
            raise ValueError(
                f"`layer_types` holds 'sortcut_attention', where all queries read the same blocks, but {by} lets "
                "queries choose: use 'sinkhorn_attention', or `sort_granularity='block'` and `sort_net='bilinear'`."
            )
        if self.sort_granularity == "token" and self.sort_net in ("linear", "mlp"):
            raise ValueError(
                f"{by} cannot be: this SortNet reads whole blocks. Use `sort_net='bilinear'`, 'keys' or 'index'."
            )

    def _validate_rope(self) -> None:
        """The library only warns of wrong RoPE parameters, and fails later: here the frequencies are computed once."""
        if self.rope_parameters.get("partial_rotary_factor", 1) != 1:
            raise ValueError(
                f"`rope_parameters` hold a `partial_rotary_factor` of "
                f"{self.rope_parameters['partial_rotary_factor']}, but all of a head is rotated here: leave it out."
            )
        try:
            rope_type, theta = self.rope_parameters["rope_type"], float(self.rope_parameters["rope_theta"])
            is_valid = 0 < theta <= 1e18
            if is_valid and rope_type != "default":
                with torch.device("cpu"):  # models are built on "meta", where tensors have no values
                    frequencies, scale = ROPE_INIT_FUNCTIONS[rope_type](self, torch.device("cpu"))
                is_valid = len(frequencies) == self.head_dim // 2 and bool(frequencies.isfinite().all())
                is_valid = is_valid and math.isfinite(scale)
        except Exception as error:
            raise ValueError(
                f"`rope_parameters` ({self.rope_parameters}) give no RoPE: {describe_error(error)}"
            ) from error
        if not is_valid:
            raise ValueError(f"`rope_parameters` ({self.rope_parameters}) give no frequencies that are finite.")


def describe_error(error: Exception) -> str:
    return str(error) if isinstance(error, (ValueError, StrictDataclassError)) else f"{type(error).__name__}: {error}"


SinkhornConfig.register_for_auto_class()

__all__ = ["SinkhornConfig"]
