# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The base class of all models: what they support, what they can return, and how they are loaded."""

from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder


try:  # a folder on the Hub, or any package
    from .base_attention_sinkhorn import SinkhornBaseAttention
    from .configuration_sinkhorn import SinkhornConfig
    from .layer_sinkhorn import SinkhornLayer
    from .loading_sinkhorn import check_loaded, explain_loading_errors
    from .sort_net_sinkhorn import SinkhornSortNet
except ImportError:  # flat modules, as installed
    from base_attention_sinkhorn import SinkhornBaseAttention
    from configuration_sinkhorn import SinkhornConfig
    from layer_sinkhorn import SinkhornLayer
    from loading_sinkhorn import check_loaded, explain_loading_errors
    from sort_net_sinkhorn import SinkhornSortNet


class SinkhornPreTrainedModel(PreTrainedModel):
    config: SinkhornConfig
    config_class = SinkhornConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SinkhornLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = False
    _can_record_outputs = {
        "hidden_states": SinkhornLayer,
        "attentions": OutputRecorder(SinkhornBaseAttention, index=1),
        "sort_matrices": OutputRecorder(SinkhornBaseAttention, index=2),
    }

    # The library's loss of a head. Without it the library reads the class's name, and takes the shifted loss of a
    # causal language model for all that it cannot read.
    _head_loss: str | None = None

    def __init__(self, config: SinkhornConfig, *args, **kwargs):
        if isinstance(config, SinkhornConfig):  # for anything else the library has an error message
            config.check_again()
        super().__init__(config, *args, **kwargs)
        if self._head_loss is not None:
            self.loss_type = self._head_loss

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SinkhornSortNet) and hasattr(module, "index_proj"):
            for projection in module.index_proj:  # of a few directions, so that products are as large as those of all
                init.orthogonal_(projection)
            if hasattr(module, "index_query_proj"):  # the mean of the heads that become one, in the same directions
                merged = module.num_key_value_groups
                init.copy_(module.index_query_proj, (module.index_proj / merged).repeat(1, merged, 1))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """
        As the library's, but a bad file is refused with an error that names it, and missing tensors are not replaced
        by random numbers. Pickled weights need `use_safetensors=False`.

        Raises:
            `OSError`: a file is missing, damaged, or pickled.
            `ValueError`: the weights lack a tensor that is not part of a new head, or hold NaN or infinity; or no
                model can be made of config.json.
            `RuntimeError`: a tensor has another shape than the configuration says (unless
                `ignore_mismatched_sizes=True`).
        """
        with explain_loading_errors(pretrained_model_name_or_path, kwargs):
            options = kwargs if kwargs.get("use_safetensors") is not None else kwargs | {"use_safetensors": True}
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **options)

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, expected_keys=None):
        """
        The library's, and a check of what was loaded. A private method, because there is no public one between the
        reading of the files, which tells what they lack, and the initialisation of that, which takes the memory of any
        size that config.json says.
        """
        loaded = PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, expected_keys
        )
        # Not of tensors that the caller passes, nor of an adapter, which is part of a model.
        if state_dict is None and expected_keys is None:
            check_loaded(model, checkpoint_files, load_config, loaded[0])
        return loaded
