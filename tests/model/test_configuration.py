# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`SinkhornConfig`: defaults, round trips, and every refusal in words."""

import copy
import json
import pickle

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from configuration_sinkhorn import SinkhornConfig
from modeling_sinkhorn import SinkhornModel


def test_defaults_follow_the_design():
    config = SinkhornConfig()
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (32000, 768, 2048)
    assert (config.num_key_value_heads, config.head_dim, config.block_size) == (12, 64, 64)
    assert config.layer_types == ["sinkhorn_attention"] * 12
    assert (config.sort_net, config.sort_pooling, config.sort_assignment) == ("bilinear", "mean", "soft")
    assert (config.sinkhorn_iterations, config.sinkhorn_temperature, config.gumbel_noise) == (8, 0.75, True)
    assert config.pooling == "mean" and SinkhornConfig(is_decoder=True).pooling == "last"


def test_round_trip(tmp_path):
    config = SinkhornConfig(num_hidden_layers=2, layer_types=["local_attention", "sortcut_attention"], block_size=7)
    config.save_pretrained(tmp_path)
    assert SinkhornConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_layer_types_have_a_name_of_ours_in_files_and_both_are_read(tmp_path):
    types = ["local_attention", "sortcut_attention"]
    config = SinkhornConfig(num_hidden_layers=2, layer_types=types)
    fields, written = config.to_dict(), json.loads(config.to_json_string())
    for saved in (fields, written, json.loads(config.to_json_string(use_diff=False))):
        assert saved["attention_types"] == types and "layer_types" not in saved
    assert config.layer_types == config.attention_types == types
    config.save_pretrained(tmp_path)
    old = {key: value for key, value in fields.items() if key != "attention_types"} | {"layer_types": types}
    for other in (
        SinkhornConfig(**fields),
        SinkhornConfig(**written),
        SinkhornConfig(**old),
        SinkhornConfig.from_dict(fields),
        SinkhornConfig.from_dict(old),
        SinkhornConfig.from_pretrained(tmp_path),
        SinkhornConfig.from_json_file(tmp_path / "config.json"),
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
    ):
        assert other.layer_types == types and other.to_dict()["attention_types"] == types
    path = tmp_path / "config.json"  # as earlier versions wrote it
    path.write_text(path.read_text().replace("attention_types", "layer_types"))
    assert SinkhornConfig.from_pretrained(tmp_path).layer_types == types
    # Without this code.
    config.save_pretrained(tmp_path)
    assert PreTrainedConfig.from_pretrained(tmp_path).attention_types == types
    for name in ("layer_types", "attention_types"):
        changed = SinkhornConfig.from_pretrained(tmp_path, **{name: types[:1] * 2})
        assert changed.layer_types == types[:1] * 2
    assert SinkhornConfig(**(fields | {"layer_types": types[:1] * 2})).layer_types == types[:1] * 2
    with pytest.raises(StrictDataclassError, match="each entry must be one of"):
        SinkhornConfig(num_hidden_layers=1, attention_types=["magic"])


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"block_size": 0}, "`block_size` must be at least 1"),
        ({"block_size": "64"}, "block_size.*expected int"),
        ({"vocab_size": -1}, "`vocab_size` must be at least 1"),
        ({"num_sorted_blocks": 0}, "`num_sorted_blocks` must be at least 1"),
        ({"num_local_blocks": 0}, "`num_local_blocks` must be at least 1"),
        ({"sortcut_blocks": 0}, "`sortcut_blocks` must be at least 1"),
        ({"num_sorted_blocks": 2}, "`num_sorted_blocks=2` needs `sort_assignment='hard'`"),
        ({"sinkhorn_iterations": -1}, "`sinkhorn_iterations` must be 0 or more"),
        ({"sinkhorn_temperature": 0}, "`sinkhorn_temperature` must be above 0"),
        ({"sinkhorn_temperature": float("nan")}, "`sinkhorn_temperature` must be above 0"),
        ({"num_attention_heads": 7}, "`hidden_size`.*not a multiple of `num_attention_heads`"),
        ({"num_key_value_heads": 5}, "`num_attention_heads`.*not a multiple of `num_key_value_heads`"),
        ({"head_dim": 3}, "`head_dim` must be even"),
        ({"hidden_dropout": 1.0}, r"`hidden_dropout` must be in \[0, 1\)"),
        ({"sort_net": "attention"}, "`sort_net` must be one of"),
        ({"attention_bias": "o"}, "`attention_bias` must be one of"),
        ({"sort_pooling": "max"}, "`sort_pooling` must be one of"),
        ({"causal_balancing": "none"}, "`causal_balancing` must be one of"),
        ({"sort_assignment": "argmax"}, "`sort_assignment` must be one of"),
        ({"classifier_pooling": "max"}, "`classifier_pooling` must be one of"),
        ({"layer_types": ["linear_attention"] * 12}, "`layer_types` holds .*each entry must be one of"),
        ({"layer_types": ["local_attention"]}, "`layer_types` has 1 entries for `num_hidden_layers=12`"),
        ({"is_decoder": True, "layer_types": ["sortcut_attention"] * 12}, "'sortcut_attention' in a decoder"),
        ({"sort_net": "linear", "max_position_embeddings": 32}, "leaves a 'linear' SortNet no block"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "`partial_rotary_factor` of 0.5.*leave it out",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_work_is_refused_in_words(settings, words):
    with pytest.raises(StrictDataclassError, match=f"(?s){words}"):
        SinkhornConfig(**settings)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"block_size": 0}, "`block_size` must be at least 1"),
        ({"num_hidden_layers": 1}, "`layer_types` has 2 entries for `num_hidden_layers=1`"),
        ({"sinkhorn_temperature": -1.0}, "`sinkhorn_temperature` must be above 0"),
        ({"sort_assignment": "sofd"}, "`sort_assignment` must be one of"),
        ({"is_decoder": True}, "'sortcut_attention' in a decoder"),
        ({"rope_parameters": {"rope_type": "default"}}, "`rope_parameters`.*give no RoPE"),
    ],
    ids=str,
)
def test_what_is_set_besides_a_file_is_refused_too(tmp_path, settings, words):
    """The library sets it on the finished configuration, whose checks were made."""
    config = SinkhornConfig(num_hidden_layers=2, layer_types=["sinkhorn_attention", "sortcut_attention"])
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"(?s){words}"):
        SinkhornConfig.from_pretrained(tmp_path, **settings)
    with pytest.raises(ValueError, match=f"(?s){words}"):
        SinkhornConfig.from_pretrained(tmp_path, return_unused_kwargs=True, **settings)


def test_a_configuration_that_was_changed_is_checked_again():
    config = SinkhornConfig(hidden_size=32, num_attention_heads=2, intermediate_size=8, num_hidden_layers=2)
    config.update_from_string("num_hidden_layers=4")
    with pytest.raises(StrictDataclassError, match="`layer_types` has 2 entries for `num_hidden_layers=4`"):
        SinkhornModel(config)


def test_no_initial_spread_may_be_an_integer():
    assert SinkhornConfig(initializer_range=0).initializer_range == 0
