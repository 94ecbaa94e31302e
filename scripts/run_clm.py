# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Trains or fine-tunes a causal language model with the Trainer, with the flags of Transformers' own `run_clm.py`. With
no flag but the output folder, it trains a small Sinkhorn model from scratch on the shipped State of the Union
addresses.

    python scripts/run_clm.py --output_dir runs/clm
    python scripts/run_clm.py --output_dir runs/compare --compare_with local_attention,full_attention \\
        --results_file results/language_modeling/sotu.json
    python scripts/run_clm.py --output_dir runs/tiny --max_steps 20 --max_eval_samples 8 --block_size 256 \\
        --config_overrides hidden_size=64,num_hidden_layers=1
    python scripts/run_clm.py --output_dir runs/mine --train_file book.txt --validation_file other.txt --keep_documents
    accelerate launch scripts/run_clm.py --output_dir runs/clm --resume_from_checkpoint last
    torchrun --nproc_per_node 2 scripts/run_clm.py --output_dir runs/clm --use_cpu
"""

from dataclasses import dataclass, field

import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from common.errors import UserError
from training.language_modeling import SMALL_MODEL, Objective, PadWithLabels, causal_scores, count_tokens, main
from training.losses import causal_loss
from training.model_choice import longest_input


@dataclass
class ChunkArguments:
    block_size: int = field(
        default=1024,
        metadata={"help": "Tokens per chunk. The model's own blocks are --config_overrides block_size=..."},
    )

    def __post_init__(self) -> None:
        if self.block_size < 2:
            raise UserError(
                f"--block_size must be 2 or more, got {self.block_size}: a token is predicted from others."
            )


def add_labels(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Every token is predicted except the first of its row."""
    return rows.map(lambda row: {"labels": row["input_ids"]}, desc="Labels")


def count(logits: Tensor, labels: Tensor) -> Tensor:
    return count_tokens(logits[:, :-1], labels[:, 1:])


def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> dict[str, str]:
    """A continuation of the first 48 tokens of a held-out text."""
    prompt = torch.tensor([rows[0]["input_ids"][:48]], device=model.device)
    longest = longest_input(model.config, tokenizer)
    if longest is not None and prompt.shape[1] >= longest:
        prompt = prompt[:, : longest // 2]
    set_seed(0)
    tokens = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=160 if longest is None else min(160, longest - prompt.shape[1]),
        do_sample=True,
        temperature=0.8,
        top_k=50,
        pad_token_id=tokenizer.pad_token_id,
    )
    written = tokenizer.decode(tokens[0, prompt.shape[1] :], skip_special_tokens=True)
    return {"prompt": tokenizer.decode(prompt[0]), "text": written}


OBJECTIVE = Objective(
    auto_class=AutoModelForCausalLM,
    small_model={**SMALL_MODEL, "is_decoder": True},
    collator=PadWithLabels,
    prepare_evaluation=add_labels,
    evaluation_collator=PadWithLabels,
    count=count,
    scores=causal_scores,
    loss=causal_loss,
    sample=sample,
)

if __name__ == "__main__":
    main(OBJECTIVE, (ChunkArguments,), lambda arguments: arguments.block_size)
