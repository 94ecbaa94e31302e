# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Two processes that talk by gloo, and what `test_clients_distributed.py` runs in them. A module of its own, because the
new processes import it. What a function here compares with, it computes itself, in each process and without the other.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Trainer, TrainingArguments
from transformers.distributed import DistributedConfig

from helpers import ALL_LAYERS, assert_close, tiny_config
from modeling_sinkhorn import (
    SinkhornForCausalLM,
    SinkhornForMaskedLM,
    SinkhornForQuestionAnswering,
    SinkhornForSequenceClassification,
    SinkhornForTokenClassification,
)
from validation_sinkhorn import KEY_SORT_NETS


HEADS = (
    SinkhornForSequenceClassification,
    SinkhornForCausalLM,
    SinkhornForMaskedLM,
    SinkhornForTokenClassification,
    SinkhornForQuestionAnswering,
)


def run_in_two(function: Callable, folder: Path, *args) -> None:
    """Calls `function(rank, *args)` in two processes of one gloo group; an error in either is raised here."""
    torch.multiprocessing.spawn(_begin, (function, str(folder / "rendezvous"), args), nprocs=2)


def _begin(rank: int, function: Callable, rendezvous: str, args: tuple) -> None:
    torch.set_num_threads(1)
    # As a launcher would set them. accelerate asks for an address, though the group is made by a file and needs none.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    try:
        function(rank, *args)
    finally:
        dist.destroy_process_group()


def make(model_class: type, assignment: str = "soft", **overrides) -> nn.Module:
    """Every layer type that the head allows, the same weights in each process, no noise."""
    is_decoder = overrides.pop("is_decoder", model_class is SinkhornForCausalLM)
    queries_choose = overrides.get("sort_net") in KEY_SORT_NETS
    kinds = [kind for kind in ALL_LAYERS if not ((is_decoder or queries_choose) and kind == "sortcut_attention")]
    torch.manual_seed(0)
    config = tiny_config(
        num_hidden_layers=len(kinds),
        sort_assignment=assignment,
        num_sorted_blocks=2 if assignment == "hard" else 1,
        is_decoder=is_decoder,
        gumbel_noise=False,
        initializer_range=0.2,
        **overrides,
    )
    config.layer_types = kinds
    return model_class(config)


def batch_for(model_class: type, length: int) -> dict[str, torch.Tensor]:
    """Four rows with padding left and right and as many labels in each half, so that losses of halves average."""
    draw = torch.Generator().manual_seed(length)
    batch = {"input_ids": torch.randint(3, 50, (4, length), generator=draw)}
    cut = length // 3
    mask = torch.ones(4, length, dtype=torch.long)
    mask[0, :cut], mask[1, length - cut :] = 0, 0
    mask[2, length - cut :], mask[3, :cut] = 0, 0
    batch["attention_mask"] = mask
    if model_class is SinkhornForSequenceClassification:
        return batch | {"labels": torch.tensor([0, 1, 2, 1])}
    if model_class is SinkhornForQuestionAnswering:
        return batch | {"start_positions": torch.tensor([cut] * 4), "end_positions": torch.tensor([cut] * 4)}
    if model_class is SinkhornForTokenClassification:
        labels = torch.randint(0, 3, (4, length), generator=draw)
    else:
        labels = batch["input_ids"].clone()
    labels[mask == 0] = -100
    if cut:
        labels[0, cut], labels[3, cut] = -100, -100  # what a shifted label would predict from padding
        if model_class is not SinkhornForCausalLM:
            labels[1, 0], labels[2, 0] = -100, -100
    return batch | {"labels": labels}


def half(batch: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    return {name: tensor[2 * rank : 2 * rank + 2] for name, tensor in batch.items()}


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same_gradient(parameter: nn.Parameter, expected: nn.Parameter) -> None:
    """Relative to the largest entry, since a SortNet's gradients are small; below 1e-5 there is rounding alone."""
    scale = expected.grad.abs().max().clamp(min=1e-5)
    assert_close(full(parameter.grad) / scale, expected.grad / scale, 0.01)


# --------------------------------------------------------------------------------------------------------------------
# DDP
# --------------------------------------------------------------------------------------------------------------------


def ddp(rank: int, checkpointing: bool) -> None:
    """Gradients of the joint batch at three lengths, the last of which is one block, so that nothing is sorted."""
    for model_class in HEADS:
        for assignment in ("soft", "hard"):
            alone, shared = (make(model_class, assignment).train() for _ in range(2))
            if checkpointing:
                shared.activation_checkpointing_enable()
            wrapped = DistributedDataParallel(shared, find_unused_parameters=False)
            for length in (22, 37, 3):
                batch = batch_for(model_class, length)
                for model, inputs in ((alone, batch), (wrapped, half(batch, rank))):
                    model.zero_grad()
                    model(**inputs).loss.backward()
                for (name, parameter), expected in zip(shared.named_parameters(), alone.parameters()):
                    assert parameter.grad is not None, f"{model_class.__name__}: {name} has no gradient"
                    assert_same_gradient(parameter, expected)


# --------------------------------------------------------------------------------------------------------------------
# FSDP
# --------------------------------------------------------------------------------------------------------------------


def train_alone_and_sharded(rank: int, alone: nn.Module, sharded: nn.Module) -> None:
    """Two steps of AdamW each, on the joint batch and on halves: losses, gradients and new weights are the same."""
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in (alone, sharded)]
    for length in (22, 37):
        batch = batch_for(type(alone), length)
        losses = []
        for model, inputs, optimizer in zip((alone, sharded), (batch, half(batch, rank)), optimizers):
            optimizer.zero_grad()
            losses.append(model(**inputs).loss)
            losses[-1].backward()
        mean = losses[1].detach().clone()
        dist.all_reduce(mean)
        assert_close(mean / 2, losses[0].detach())
        for parameter, expected in zip(sharded.parameters(), alone.parameters()):
            assert isinstance(parameter, DTensor) and parameter.to_local().numel() < parameter.numel()
            assert_same_gradient(parameter, expected)
        for optimizer in optimizers:
            optimizer.step()
    for parameter, expected in zip(sharded.parameters(), alone.parameters()):
        assert_close(full(parameter), expected.data, 1e-4)  # AdamW divides by the root of squared gradients


def fsdp_by_torch(rank: int, folder: str) -> None:
    for model_class in (SinkhornForSequenceClassification, SinkhornForCausalLM):
        for assignment in ("soft", "hard"):
            alone, sharded = (make(model_class, assignment).train() for _ in range(2))
            (name,) = sharded._no_split_modules
            layers = [module for module in sharded.modules() if type(module).__name__ == name]
            assert len(layers) == sharded.config.num_hidden_layers
            for module in (*layers, sharded):
                fully_shard(module)
            train_alone_and_sharded(rank, alone, sharded)
            reload_full_state(rank, alone, sharded, f"{folder}/{model_class.__name__}-{assignment}")


def fsdp_by_transformers(rank: int, folder: str) -> None:
    """`from_pretrained` shards by the model's own plan as it reads the weights, and `save_pretrained` joins them."""
    for auto_class, model_class in (
        (AutoModelForSequenceClassification, SinkhornForSequenceClassification),
        (AutoModelForCausalLM, SinkhornForCausalLM),
    ):
        alone, path = make(model_class).train(), f"{folder}/{model_class.__name__}"
        if rank == 0:
            alone.save_pretrained(path)
        dist.barrier()
        sharded = auto_class.from_pretrained(path, distributed_config=DistributedConfig(fsdp_size=2)).train()
        train_alone_and_sharded(rank, alone, sharded)
        sharded.save_pretrained(f"{path}-trained")
        dist.barrier()
        check_reloaded(alone, auto_class.from_pretrained(f"{path}-trained"))


def reload_full_state(rank: int, alone: nn.Module, sharded: nn.Module, path: str) -> None:
    """A full state dict goes through `save_pretrained` and `from_pretrained` as that of any model does."""
    state = {name: full(tensor) for name, tensor in sharded.state_dict().items()}  # every process takes part
    if rank == 0:
        type(alone)(alone.config).save_pretrained(path, state_dict=state)
    dist.barrier()
    check_reloaded(alone, type(alone).from_pretrained(path))


@torch.no_grad()
def check_reloaded(alone: nn.Module, reloaded: nn.Module) -> None:
    batch = batch_for(type(alone), 37)
    batch.pop("labels")
    assert_close(reloaded.eval()(**batch).logits, alone.eval()(**batch).logits, 1e-4)


def fsdp_by_trainer(rank: int, folder: str) -> None:
    """`Trainer` with a model that `from_pretrained` sharded, and what it saves, against SGD on the joint batches."""
    alone = make(SinkhornForSequenceClassification).train()
    if rank == 0:
        alone.save_pretrained(f"{folder}/model")
    dist.barrier()
    distribution = DistributedConfig(fsdp_size=2)
    sharded = AutoModelForSequenceClassification.from_pretrained(f"{folder}/model", distributed_config=distribution)
    batches = [batch_for(SinkhornForSequenceClassification, 22) for _ in range(2)]
    batches[1]["input_ids"] = batches[1]["input_ids"].flip(-1)
    rows = [{name: tensor[row] for name, tensor in batch.items()} for batch in batches for row in range(4)]
    arguments = TrainingArguments(
        output_dir=f"{folder}/trainer",
        per_device_train_batch_size=2,
        max_steps=2,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        train_sampling_strategy="sequential",
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(sharded, arguments, train_dataset=rows)
    trainer.train()
    assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    trainer.save_model(f"{folder}/saved")

    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
    first = alone.score.weight.detach().clone()
    for batch in batches:
        optimizer.zero_grad()
        alone(**batch).loss.backward()
        optimizer.step()
    assert (alone.score.weight - first).abs().max() > 0.01
    for parameter, expected in zip(trainer.model.parameters(), alone.parameters()):
        assert_close(full(parameter).data, expected.data)
    dist.barrier()
    check_reloaded(alone, AutoModelForSequenceClassification.from_pretrained(f"{folder}/saved"))


# --------------------------------------------------------------------------------------------------------------------
# Tensor parallel
# --------------------------------------------------------------------------------------------------------------------


def tensor_parallel(rank: int, folder: str, overrides: dict) -> None:
    """Heads and feed-forward units are divided between the processes; each sees the whole batch."""
    for model_class in (SinkhornForSequenceClassification, SinkhornForCausalLM):
        for assignment in ("hard",) if overrides.get("sort_net") in KEY_SORT_NETS else ("soft", "hard"):
            alone, path = make(model_class, assignment, **overrides), f"{folder}/{model_class.__name__}-{assignment}"
            if rank == 0:
                alone.save_pretrained(path)
            dist.barrier()
            divided = type(alone).from_pretrained(path, distributed_config=DistributedConfig(tp_plan="auto"))
            attention = divided.model.layers[0].self_attn
            assert attention.q_proj.weight.to_local().shape[0] * 2 == attention.q_proj.weight.shape[0]
            if overrides.get("sort_net") == "index":
                assert attention.sort_net.index_proj.to_local().shape == (1, 4, 16)
            for length in (22, 37):
                batch = batch_for(model_class, length)
                losses = []
                for model in (alone, divided):
                    model.train().zero_grad()
                    losses.append(model(**batch).loss)
                    losses[-1].backward()
                assert_close(losses[1].detach(), losses[0].detach())
                for parameter, expected in zip(divided.parameters(), alone.parameters()):
                    assert_same_gradient(parameter, expected)
            check_reloaded(alone, divided)
            if model_class is SinkhornForCausalLM:
                prompt = {name: batch[name] for name in ("input_ids", "attention_mask")}
                settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
                expected = alone.generate(**prompt, **settings)
                assert torch.equal(divided.generate(**prompt, **settings), expected)
            divided.save_pretrained(f"{path}-saved")
            dist.barrier()
            check_reloaded(alone, type(alone).from_pretrained(f"{path}-saved"))
