# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
DDP, FSDP2 and tensor parallelism in two processes on the CPU (gloo), each against the same model in one process: losses,
gradients, a step, saving and loading. All layer types are in each model, soft and hard sorting. `test_accelerate.py` has
the scripts under `accelerate launch`.
"""

import pytest
from accelerate import FullyShardedDataParallelPlugin

import two_processes
from helpers import tiny_config
from modeling_sinkhorn import SinkhornForSequenceClassification, SinkhornLayer, SinkhornModel


@pytest.mark.slow  # two processes, each with its own import of everything
@pytest.mark.parametrize("checkpointing", [False, True])
def test_ddp_without_a_search_for_unused_parameters(checkpointing, tmp_path):
    two_processes.run_in_two(two_processes.ddp, tmp_path, checkpointing)


@pytest.mark.slow
def test_fsdp_of_torch(tmp_path):
    two_processes.run_in_two(two_processes.fsdp_by_torch, tmp_path, str(tmp_path))


@pytest.mark.slow
def test_fsdp_of_transformers(tmp_path):
    two_processes.run_in_two(two_processes.fsdp_by_transformers, tmp_path, str(tmp_path))


@pytest.mark.slow
def test_fsdp_under_the_trainer(tmp_path):
    two_processes.run_in_two(two_processes.fsdp_by_trainer, tmp_path, str(tmp_path))


def test_fsdp_of_accelerate_wraps_each_layer(monkeypatch):
    """Its plan alone: accelerate shards on devices other than the CPU only."""
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    plugin, model = FullyShardedDataParallelPlugin(), SinkhornForSequenceClassification(tiny_config())
    plugin.set_auto_wrap_policy(model)
    assert plugin.auto_wrap_policy.keywords["transformer_layer_cls"] == {SinkhornLayer}


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"sort_net": "linear", "attention_bias": True, "tie_word_embeddings": False},
        {"sort_net": "mlp"},
        {"sort_net": "index"},
        {"sort_net": "index", "sort_granularity": "token"},
        {"sort_net": "index", "sort_granularity": "token", "num_index_heads": 2},
        {"sort_net": "keys", "key_piece_size": 2},
    ],
    ids=str,
)
def test_tensor_parallel(overrides, tmp_path):
    two_processes.run_in_two(two_processes.tensor_parallel, tmp_path, str(tmp_path), overrides)


@pytest.mark.parametrize("num_index_heads", [None, 2])
@pytest.mark.parametrize("sort_net", ["bilinear", "linear", "mlp", "keys", "index"])
@pytest.mark.parametrize("layer_type", ["sinkhorn_attention", "local_attention"])
def test_the_tensor_parallel_plan_names_what_the_model_has(layer_type, sort_net, num_index_heads):
    fields = {"sort_assignment": "hard", "key_piece_size": 2, "num_index_heads": num_index_heads}
    model = SinkhornModel(tiny_config(layer_type, sort_net=sort_net, **fields))
    expected = {
        name.removesuffix(".weight").replace("layers.0", "layers.*")
        for name, parameter in model.named_parameters()
        if "layers.0" in name and parameter.dim() > 1
    }
    # The hidden layer of an "mlp" SortNet has no heads: every process computes the whole of it.
    assert set(model.config.base_model_tp_plan) == {name for name in expected if not name.endswith("hidden_proj")}
