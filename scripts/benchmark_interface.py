# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Measures the time of models of other types with `attn_implementation="sinkhorn"` and with the library's SDPA, at several
lengths: a forward pass, and a forward and backward pass. Rounds are interleaved in one process.

    python scripts/benchmark_interface.py --results results/benchmarks/interface.json      # an hour on two CPU cores
    python scripts/benchmark_interface.py --results runs/training.json --dtype bfloat16 --dropout 0.1
    python scripts/benchmark_interface.py --results runs/quick.json --quick      # short texts, one round

The models have the shapes of MiniLM, ModernBERT-base and SmolLM2-135M, with fewer layers; weights and tokens are random:
the cost does not depend on them. There are no figures unless a text that is read whole gives SDPA's numbers.
"""

import argparse
import gc
import math
import operator
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, PreTrainedModel

from benchmarking.passes import FORWARD, FORWARD_BACKWARD, PASSES
from benchmarking.timing import predict
from common.command_line import make_parser
from common.run_record import provenance, write_json
from interface_sinkhorn import NAME, Settings


VOCAB, LAYERS = 8000, 6
SMALL = {"vocab_size": VOCAB, "num_hidden_layers": LAYERS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "BERT": {
        "model_type": "bert",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_attention_heads": 12,
    },
    "ModernBERT": {
        "model_type": "modernbert",
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_attention_heads": 12,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "Llama": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "use_cache": False,
    },
}
# The fields for dropout, of hidden states and of attention weights.
DROPOUTS = {
    "BERT": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "ModernBERT": ("embedding_dropout", "mlp_dropout", "attention_dropout"),
    "Llama": ("attention_dropout",),
}
IMPLEMENTATIONS = ("sdpa", NAME)
LENGTHS = [1024, 2048, 4096, 8192, 16384]
QUICK = {"lengths": [1024], "rounds": 1}


def make_model(
    name: str, attn_implementation: str, length: int, dropout: float = 0.0, **overrides: Any
) -> PreTrainedModel:
    torch.manual_seed(0)
    dropouts = dict.fromkeys(DROPOUTS[name], dropout)
    fields = SHAPES[name] | SMALL | {"max_position_embeddings": length} | dropouts | overrides
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    return AutoModel.from_config(config, attn_implementation=attn_implementation).eval()


@torch.no_grad()
def check_parity(name: str) -> float:
    """
    The largest difference between a text that is read whole, in a batch with a longer one, and the same alone in SDPA.

    Raises:
        SystemExit: it is above 1e-4.
    """
    short, long = Settings().whole_length - 17, 2 * Settings().whole_length
    tokens, mask = torch.randint(5, VOCAB, (2, long)), torch.ones(2, long, dtype=torch.long)
    mask[1, short:] = 0
    sdpa, sinkhorn = (make_model(name, kind, long, num_hidden_layers=3) for kind in IMPLEMENTATIONS)
    expected = sdpa(tokens[1:, :short]).last_hidden_state
    actual = sinkhorn(tokens, attention_mask=mask).last_hidden_state[1:, :short]
    error = (actual - expected).abs().max().item()
    if not error <= 1e-4:
        raise SystemExit(f"error: {name}: sparse attention differs from SDPA by {error:.3g}; no speed is given.")
    return error


def seconds(model: PreTrainedModel, tokens: torch.Tensor, kind: str) -> float:
    """Of one pass. A forward pass alone keeps no activations, and drops nothing."""
    model.train(kind == FORWARD_BACKWARD).zero_grad(set_to_none=True)
    start = time.perf_counter()
    with torch.set_grad_enabled(kind == FORWARD_BACKWARD):
        output = model(tokens).last_hidden_state
        if kind == FORWARD_BACKWARD:
            output.square().mean().backward()
    return time.perf_counter() - start


def measure(name: str, length: int, kinds: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Per pass: medians and ranges of both, and the median over rounds of SDPA's time as a multiple of ours."""
    tokens = torch.randint(5, VOCAB, (1, length), generator=torch.Generator().manual_seed(0))
    models = {
        implementation: make_model(name, implementation, length, arguments.dropout).to(getattr(torch, arguments.dtype))
        for implementation in IMPLEMENTATIONS
    }
    seconds(models[NAME], tokens, kinds[-1])  # warms up
    times = {kind: {implementation: [] for implementation in IMPLEMENTATIONS} for kind in kinds}
    for number in range(arguments.rounds):
        order = IMPLEMENTATIONS if number % 2 else IMPLEMENTATIONS[::-1]
        for kind in kinds:
            for implementation in order:
                times[kind][implementation].append(seconds(models[implementation], tokens, kind))
                gc.collect()
    cell: dict[str, Any] = {"rounds": arguments.rounds}
    for kind in kinds:
        cell[kind] = {
            implementation: {"seconds": statistics.median(values), "spread": [min(values), max(values)]}
            for implementation, values in times[kind].items()
        }
        ratios = map(operator.truediv, *times[kind].values())
        cell[kind]["times_faster"] = statistics.median(ratios)
    return cell


def affordable(rows: dict[str, Any], length: int, most: float, rounds: int = 1, left: float = math.inf) -> list[str]:
    """The passes that SDPA is expected to take at most `most` seconds for, and of those as many as fit into what is left."""

    def expected(kind: str) -> float:
        earlier = {int(n): cell[kind]["sdpa"]["seconds"] for n, cell in rows.items() if kind in cell}
        return predict(earlier, length) if earlier or not rows else math.inf

    kinds = []
    for kind in PASSES:
        seconds_of_all = 2 * (rounds + 1) * expected(kind)  # ours takes less, or little more
        if expected(kind) <= most and seconds_of_all <= left:
            kinds.append(kind)
            left -= seconds_of_all
    return kinds


def first_faster(rows: dict[str, Any], kind: str) -> int | None:
    """The shortest measured length from which on ours is faster; `None` if it never is."""
    found = None
    for length in sorted((int(n) for n, cell in rows.items() if kind in cell), reverse=True):
        if rows[str(length)][kind]["times_faster"] < 1:
            break
        found = length
    return found


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="JSON file to write.")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="In tokens.")
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES), metavar="NAME")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16 where the processor computes in it; others take many times as long.",
    )
    parser.add_argument(
        "--dropout", type=float, default=0.0, help="Of hidden states and attention weights, in passes with a backward."
    )
    parser.add_argument("--rounds", type=int, default=5, help="Passes that each figure is the median of.")
    parser.add_argument("--max_seconds_per_pass", type=float, default=240.0, help="Slower ones are left out.")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="Passes that would take longer are left out. 0: no limit."
    )
    parser.add_argument("--quick", action="store_true", help="Short texts, one round.")
    if parser.parse_args().quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    deadline = time.monotonic() + 60 * arguments.minutes if arguments.minutes else math.inf
    record = {
        **provenance(),
        "command": ["scripts/benchmark_interface.py", *sys.argv[1:]],
        "threads": torch.get_num_threads(),
        "dtype": arguments.dtype,
        "dropout": arguments.dropout,
        "settings": Settings()._asdict(),
        "models": {name: SHAPES[name] | {"num_hidden_layers": LAYERS} for name in arguments.models},
        "parity": {name: check_parity(name) for name in arguments.models},
        "rows": {name: {} for name in arguments.models},
    }
    for length in sorted(arguments.lengths):
        for name in tqdm(arguments.models, desc=f"{length:,} tokens"):
            rows = record["rows"][name]
            left = deadline - time.monotonic()
            kinds = affordable(rows, length, arguments.max_seconds_per_pass, arguments.rounds, left)
            if kinds:
                rows[str(length)] = measure(name, length, kinds, arguments)
                write_json(arguments.results, record)
    record["faster_from"] = {
        name: {kind: first_faster(rows, kind) for kind in PASSES} for name, rows in record["rows"].items()
    }
    write_json(arguments.results, record)
    for kind in (FORWARD, FORWARD_BACKWARD):
        print(f"\n| {f'times faster, {kind}':30} | " + " | ".join(f"{n:>8,}" for n in arguments.lengths) + " |")
        print(f"|-{'-' * 30}-|" + "".join(f"-{'-' * 8}:|" for _ in arguments.lengths))
        for name, rows in record["rows"].items():
            cells = [rows.get(str(n), {}).get(kind, {}).get("times_faster") for n in arguments.lengths]
            print(f"| {name:30} | " + " | ".join("       -" if x is None else f"{x:8.2f}" for x in cells) + " |")


if __name__ == "__main__":
    main()
