# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Runs everything that needs a GPU, the most important first, in as many calls as it takes: each goes on where the last one
stopped.

    python scripts/gpu_session.py --output_dir runs/gpu --minutes 9
    python scripts/gpu_session.py --output_dir runs/gpu --list
    python scripts/gpu_session.py --output_dir runs/tiny --tiny       # every command at a tiny size, without a GPU

The parts: parity and speed of the kernels; whole models, also compiled, and of 12 layers that are 768 wide; routing by
token at length, and on needles; the Long Range
Arena's ListOps and byte text at the arena's own sizes; a language model of 25 million parameters. `session.json` in the
folder says which are done. Results that are to be kept are copied to `results/` by hand.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from common.command_line import make_parser
from common.run_record import write_json


SCRIPTS = Path(__file__).resolve().parent
EARLY = 20  # seconds that a command gets to stop by itself, of those that can
LEAST_SECONDS = 30


class Part(NamedTuple):
    """
    A command of `scripts/`, with `{out}` for the folder, and `{minutes}` for those left. It is called again until it
    ends by itself with status 0.
    """

    name: str
    least_minutes: float  # with fewer left it does not begin
    command: str
    tiny: str | None  # flags that make it tiny, on a CPU; None where it needs a GPU


ARENA = "--only local,soft,hard,full --seeds 0 --results_dir {out}/experiments --work_dir {out}/work"
WHOLE_MODELS = (
    '--lengths 4096 8192 16384 65536 --models floor "sinkhorn soft" "sinkhorn hard" "full attention" "causal sinkhorn soft" '
    '"causal full attention" "causal token" --ragged_longest 0 --checkpointing_lengths --long_length 0'
)
TINY_MODELS = "--lengths 64 --models floor --minutes 3 --seconds_per_length 0.1"
PARTS = (
    Part("kernels", 3, "benchmark_gpu.py --results {out}/kernels.json", None),
    Part(
        "models",
        3,
        "benchmark.py --results {out}/models.json --resume --minutes {minutes}",
        "--device cpu --quick --lengths 64 --models floor --ragged_longest 0 --checkpointing_lengths --minutes 1",
    ),
    Part(
        "token",
        3,
        "benchmark.py --results {out}/token.json --resume --minutes {minutes} --lengths 4096 16384 65536 131072 --models "
        'floor "causal token" "causal token, balanced" "causal window of 7 blocks" "causal full attention" '
        "--ragged_longest 0 --checkpointing_lengths --long_length 0",
        '--device cpu --lengths 64 --models floor "causal token" --minutes 1 --seconds_per_length 0.1',
    ),
    Part(
        "compiled",
        3,
        f"benchmark.py --results {{out}}/compiled.json --resume --minutes {{minutes}} --compile {WHOLE_MODELS}",
        f"--device cpu {TINY_MODELS}",
    ),
    Part(
        "base",
        3,
        f"benchmark.py --results {{out}}/base.json --resume --minutes {{minutes}} --size base {WHOLE_MODELS}",
        f"--device cpu {TINY_MODELS}",
    ),
    Part(
        "base_compiled",
        3,
        f"benchmark.py --results {{out}}/base_compiled.json --resume --minutes {{minutes}} --size base --compile {WHOLE_MODELS}",
        f"--device cpu {TINY_MODELS}",
    ),
    Part(
        "needles",
        2,
        "run_experiments.py token_settings --conditions needle_once --seeds 1,2 --jobs 3 --results_dir {out}/experiments "
        "--work_dir {out}/work --time_limit_minutes {minutes}",
        "--smoke --conditions causal_needle_once --only index_sink",
    ),
    Part(
        "listops",
        2,
        f"run_experiments.py listops --conditions arena {ARENA} --time_limit_minutes {{minutes}}",
        "--smoke --only soft",
    ),
    Part(
        "bytes",
        2,
        f"run_experiments.py imdb --conditions bytes4096 {ARENA} --time_limit_minutes {{minutes}}",
        None,  # the reviews do not ship
    ),
    Part(
        "language_model",
        2,
        "run_clm.py --output_dir {out}/language_model --resume_from_checkpoint last --block_size 1024 "
        "--config_overrides hidden_size=384,intermediate_size=1024,num_hidden_layers=12,num_attention_heads=6,"
        "sort_granularity=token,sort_net=index,sort_assignment=hard,sinkhorn_iterations=0,num_local_blocks=2,"
        "num_sink_blocks=1,num_sorted_blocks=4 --train_tokenizer_vocab_size 8000 --num_train_epochs 10 --bf16 "
        "--save_strategy steps --save_steps 200 --eval_strategy steps --eval_steps 200 --save_total_limit 1",
        "--bf16 false --use_cpu --max_steps 2 --max_train_samples 4 --max_eval_samples 2 --block_size 64 --config_overrides "
        "hidden_size=16,intermediate_size=24,num_hidden_layers=1,num_attention_heads=2,block_size=16",
    ),
)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder of the results, and of what resumes.")
    parser.add_argument("--minutes", type=float, default=9.0, help="Of this call.")
    parser.add_argument(
        "--parts", nargs="+", default=[part.name for part in PARTS], help="Some of them, in this order."
    )
    parser.add_argument("--tiny", action="store_true", help="Try every command that can do without a GPU.")
    parser.add_argument("--list", action="store_true", help="List the parts and what is done, and stop.")
    arguments = parser.parse_args()
    known = {part.name: part for part in PARTS}
    if unknown := [name for name in arguments.parts if name not in known]:
        parser.error(f"--parts: {unknown[0]} is none of {', '.join(known)}.")
    if not (arguments.tiny or arguments.list or torch.cuda.is_available()):
        raise SystemExit("error: gpu_session.py needs a GPU, and torch sees none; --tiny tries it without.")
    state = read_state(arguments.output_dir)
    if arguments.list:
        for part in PARTS:
            print(f"{part.name:15} {'done' if state.get(part.name) else 'to do':6} {part.command}")
        return
    deadline = time.monotonic() + 60 * arguments.minutes
    for part in (known[name] for name in arguments.parts):
        left = deadline - time.monotonic()
        if state.get(part.name):
            continue
        if arguments.tiny and part.tiny is None:
            print(f"{part.name}: left out, as it needs a GPU or data that does not ship", flush=True)
        elif left < 60 * part.least_minutes and not arguments.tiny:
            print(f"{part.name}: {left / 60:.1f} minutes are left, too few; call again", flush=True)
        else:
            state[part.name] = run(part, arguments, left)
            write_json(arguments.output_dir / "session.json", state)


def read_state(folder: Path) -> dict[str, bool]:
    """Which parts are done."""
    file = folder / "session.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def run(part: Part, arguments: argparse.Namespace, seconds: float) -> bool:
    """Whether the part is done. A command that is still at work when the time is over is stopped, and resumes later."""
    minutes = max((seconds - EARLY) / 60, 0.5)
    text = part.command.format(out=arguments.output_dir, minutes=f"{minutes:.1f}")
    if arguments.tiny:
        text += " " + part.tiny
    program, *flags = shlex.split(text)
    print(f"{part.name}: {text}", flush=True)
    start = time.monotonic()
    try:
        status = subprocess.run(
            [sys.executable, SCRIPTS / program, *flags], timeout=max(seconds, LEAST_SECONDS)
        ).returncode
    except subprocess.TimeoutExpired:
        status = None
    told = "stopped: it goes on in the next call" if status is None else f"ended with status {status}"
    print(f"{part.name}: {told}, {time.monotonic() - start:.0f} s", flush=True)
    return status == 0


if __name__ == "__main__":
    main()
