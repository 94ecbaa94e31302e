# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Continues a prompt with a causal language model, and prints the text as it is generated.

    python scripts/run_generation.py --model_name_or_path runs/clm --prompt "Fellow citizens of the Senate"
    python scripts/run_generation.py --model_name_or_path runs/clm --prompt_file long.txt --max_new_tokens 500

`chat.py` asks models that answer about a document.
"""

import sys
from dataclasses import dataclass, field

from transformers import HfArgumentParser, TextStreamer, set_seed

from common.errors import UserError
from generation.sampling import WriterArguments, open_writer, options, read_text


@dataclass
class GenerationArguments(WriterArguments):
    prompt: str | None = field(default=None, metadata={"help": "Text to continue."})
    prompt_file: str | None = field(default=None, metadata={"help": "UTF-8 file with the text; - for standard input."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.prompt is None) == (self.prompt_file is None):
            raise UserError("give a --prompt or a --prompt_file.")


def read_prompt(args: GenerationArguments) -> str:
    if args.prompt is not None:
        text = args.prompt
    else:
        text = sys.stdin.read() if args.prompt_file == "-" else read_text(args.prompt_file)
    if not text.strip():
        raise UserError("the prompt is empty.")
    return text


def main() -> None:
    (args,) = HfArgumentParser(GenerationArguments).parse_args_into_dataclasses()
    text = read_prompt(args)
    model, tokenizer = open_writer(args)
    set_seed(args.seed)
    batch = tokenizer(text, return_tensors="pt", verbose=False).to(model.device)
    model.generate(
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        streamer=TextStreamer(tokenizer, skip_special_tokens=True),
        prefill_chunk_size=args.prefill_chunk_size,
        pad_token_id=tokenizer.pad_token_id,
        **options(args, model),
    )


if __name__ == "__main__":
    main()
