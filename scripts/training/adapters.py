# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Training by low-rank adapters (LoRA, Hu et al., 2021, arXiv:2106.09685), with PEFT and the flags of TRL's scripts.

An index, by which tokens choose their blocks, stays as it is: trained by the loss of a text, that of a converted model found
less than before (docs/conversion.md). Converting the trained model again fits it to the new weights.
"""

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from common.errors import UserError


@dataclass
class AdapterArguments:
    use_peft: bool = field(
        default=False,
        metadata={"help": "Train low-rank adapters (LoRA), and leave the weights alone."},
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Their scale is lora_alpha / lora_r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Of what the adapters read."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Layers that get one, by the end of their names; default: all linear ones."}
    )

    def __post_init__(self) -> None:
        for name in ("lora_r", "lora_alpha"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"--lora_dropout must be from 0 to below 1, got {self.lora_dropout}.")


def with_adapters(model: PreTrainedModel, args: AdapterArguments) -> nn.Module:
    """
    The model to train: itself, or with adapters.

    Raises:
        UserError: PEFT is not installed, or the model has no such layers.
    """
    if not args.use_peft:
        return model
    try:
        import peft
    except ImportError:
        raise UserError('--use_peft needs PEFT: pip install "peft>=0.20".') from None
    config = peft.LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_target_modules or "all-linear",
        task_type="CAUSAL_LM" if model.can_generate() else None,
    )
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"--lora_target_modules: {' '.join(str(error).split())}") from None


def merge_and_save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """
    Adds the adapters to the weights, and writes the complete model where the Trainer wrote the adapters, which move to
    `adapter/`.
    """
    folder = Path(trainer.args.output_dir)
    adapted = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_world_process_zero():
        adapted.save_pretrained(folder / "adapter")
        for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
            # With one of the first two the library would look for adapters here; the third is PEFT's card for them.
            (folder / name).unlink(missing_ok=True)
    model = adapted.merge_and_unload()
    if trainer.is_world_process_zero():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return model
