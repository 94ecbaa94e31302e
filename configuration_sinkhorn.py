# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the Sinkhorn Transformer: Sparse Sinkhorn Attention (Tay et al., ICML 2020, arXiv:2002.11296)."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters


try:  # a folder on the Hub, or any package
    from .validation_sinkhorn import check_architecture, check_before_use, check_layer_types, describe_error
except ImportError:  # flat modules, as installed
    from validation_sinkhorn import check_architecture, check_before_use, check_layer_types, describe_error


# The key of `layer_types` in config.json. Some programs read a config.json without this code (tokenizers, the Trainer
# when it resumes, servers), by the library's base class, which refuses a `layer_types` with names that it does not know
# and has no way to register others. In memory it must be `layer_types`: by it caches choose their layers.
SAVED_LAYER_TYPES = "attention_types"

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
        num_index_heads (`int`, *optional*):
            With `sort_net="index"`: queries of a token that are compared. By default `num_attention_heads`, each query
            head by itself. With `num_key_value_heads`, the query heads that share a key/value head become one first,
            by a learned projection: the comparison, which is most of the time of long texts, takes that much less.
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
    num_index_heads: int | None = None
    sort_capacity: float | int = 2.0

    def __post_init__(self, **kwargs: Any) -> None:
        dtype = kwargs.get("torch_dtype") if self.dtype is None else self.dtype
        check_before_use(self.num_hidden_layers, kwargs.get("num_labels"), dtype)
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
        sort_net = {}
        if not {"local_attention", "full_attention"}.issuperset(self.layer_types):
            sort_net = {
                "bilinear": {"row_proj": "colwise", "column_proj": "colwise"},
                "keys": {},
                # Parameters, not layers. The style cuts dimension 0, their heads; what else it does is for modules.
                "index": {"index_proj": "embedding_rowwise"}
                | ({"index_query_proj": "embedding_rowwise"} if self.merges_index_heads else {}),
            }.get(self.sort_net, {"proj": "colwise"})
        norms = ("q_norm", "k_norm") if self.qk_norm else ()
        return {
            **{f"layers.*.self_attn.{name}": "replicated_with_grad_allreduce" for name in norms},
            "layers.*.self_attn.q_proj": "colwise",
            "layers.*.self_attn.k_proj": "colwise",
            "layers.*.self_attn.v_proj": "colwise",
            "layers.*.self_attn.o_proj": "rowwise",
            **{f"layers.*.self_attn.sort_net.{name}": style for name, style in sort_net.items()},
            "layers.*.mlp.gate_proj": "colwise",
            "layers.*.mlp.up_proj": "colwise",
            "layers.*.mlp.down_proj": "rowwise",
        }

    @property
    def max_num_blocks(self) -> int:
        """Blocks that a `"linear"` or `"mlp"` SortNet has outputs for."""
        return self.max_position_embeddings // self.block_size

    @property
    def merges_index_heads(self) -> bool:
        """Whether an index compares one query for all query heads of a key/value head."""
        return self.sort_net == "index" and self.num_index_heads not in (None, self.num_attention_heads)

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
        """Replaces the library's check of the same name, whose list of layer types is closed."""
        check_layer_types(self)

    def validate_architecture(self) -> None:
        """Refuses what cannot work."""
        check_architecture(self)


SinkhornConfig.register_for_auto_class()

__all__ = ["SinkhornConfig"]
