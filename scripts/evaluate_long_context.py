# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Measures what causal models make of long texts, side by side: perplexity by position, retrieval in the manner of RULER,
keys read per token, time and memory. What the results file already has is not measured again.

    python scripts/evaluate_long_context.py --results runs/long.json --models source=HuggingFaceTB/SmolLM2-135M-Instruct \\
        runs/smollm2 "window=runs/smollm2?layer_types=local_attention,num_local_blocks=10"
    python scripts/evaluate_long_context.py --results runs/long.json --models runs/smollm2 --tasks passkey cost \\
        --lengths 1024 4096 --depths 0.1 0.5 0.9 --seeds 5

    python scripts/evaluate_long_context.py --results runs/long.json --models A B C --jobs 3  # each in a process of its own

A model is LABEL=NAME?FIELD=VALUE,...: a folder or Hub model; the label and the changed fields may be left out. Perplexities
of different tokenizers cannot be compared.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from common.errors import UserError
from evaluation.jobs import evaluate_apart
from evaluation.models import default_device, parse_candidate
from evaluation.report import draw, table
from evaluation.results import Results
from evaluation.running import ALL_TASKS, CHARACTERS_PER_TOKEN, Measures, evaluate
from evaluation.texts import long_texts


@dataclass
class EvaluationArguments:
    models: list[str] = field(metadata={"help": "Models, as above; the first is what others are compared with."})
    results: str = field(metadata={"help": "JSON file to write, or to go on with."})
    tasks: list[str] = field(default_factory=lambda: list(ALL_TASKS), metadata={"help": ", ".join(ALL_TASKS) + "."})
    lengths: list[int] = field(default_factory=lambda: [1024, 2048], metadata={"help": "Of texts, in tokens."})
    depths: list[float] = field(
        default_factory=lambda: [0.1, 0.3, 0.5, 0.7, 0.9], metadata={"help": "Where things are hidden, from 0 to 1."}
    )
    seeds: int = field(default=3, metadata={"help": "Prompts of each task, length and depth."})
    texts_file: str | None = field(
        default=None,
        metadata={"help": "Long texts: txt, csv, tsv, json, jsonl or parquet; default: held-out ones that ship."},
    )
    text_column_name: str = field(default="text", metadata={"help": "Their column."})
    num_texts: int = field(default=10, metadata={"help": "Texts for perplexity at most."})
    jobs: int = field(
        default=1,
        metadata={"help": "Models that are measured at a time, each in a process of its own; times need one."},
    )
    rounds: int = field(default=3, metadata={"help": "Of each time, whose median is given."})
    plot: str | None = field(default=None, metadata={"help": "PNG file to draw."})
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Of the weights: auto, float32, bfloat16 or float16; few processors are fast in the last two."
        },
    )
    device: str = field(default_factory=default_device, metadata={"help": "cpu or cuda."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the models."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a model."})

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.tasks) - set(ALL_TASKS)):
            raise UserError(f"--tasks: {unknown[0]} is none of {', '.join(ALL_TASKS)}.")
        if min(self.lengths) < 64:
            raise UserError(f"--lengths must be at least 64, got {min(self.lengths)}.")
        if self.jobs < 1:
            raise UserError(f"--jobs must be at least 1, got {self.jobs}.")
        if self.jobs > 1 and "cost" in self.tasks:
            raise UserError("--jobs: times and memory are measured one model at a time; leave 'cost' out of --tasks.")
        if not all(0 <= depth <= 1 for depth in self.depths):
            raise UserError(f"--depths must be from 0 to 1, got {self.depths}.")
        self.lengths.sort()


def main() -> None:
    (args,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses()
    candidates = [parse_candidate(text) for text in args.models]
    if len({candidate.label for candidate in candidates}) < len(candidates):
        raise UserError("--models: two have one label; write LABEL=MODEL.")
    characters = 0 if set(args.tasks) == {"cost"} else CHARACTERS_PER_TOKEN * args.lengths[-1]  # time needs no text
    texts = long_texts(args.texts_file, args.text_column_name, args.num_texts, characters)
    hub = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}
    results = Results(Path(args.results))
    if args.jobs > 1:
        evaluate_apart(candidates, args.models, results, args.jobs)
    else:
        measures = Measures(args.tasks, args.lengths, args.depths, args.seeds, args.rounds, texts)
        evaluate([(candidate, hub) for candidate in candidates], measures, results, args.dtype, args.device)
    print(table(results.models))
    if args.plot:
        draw(results.models, Path(args.plot))


if __name__ == "__main__":
    main()
