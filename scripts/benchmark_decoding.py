# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Measures time per token and cache memory in decoding, at several context lengths. It compares soft and hard Sinkhorn
attention, and routing by token, with full attention in the same network, with the library's `DynamicCache`. Rounds are
interleaved in one process.

    python scripts/benchmark_decoding.py --results results/benchmarks/decoding.json
    python scripts/benchmark_decoding.py --results results/benchmarks/decoding_batch8.json --batch_size 8 \
        --rounds 3 --contexts 1024 4096
    python scripts/benchmark_decoding.py --results runs/quick.json --quick      # short contexts, one round

A round decodes one block of tokens, so every figure includes one sorting pass; the step that opens the block, which makes
it, is given apart too. Weights and tokens are random: the cost
does not depend on them. There are no figures unless decoding equals the full forward pass.
"""

import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import DynamicCache

from common.command_line import make_parser
from common.run_record import provenance, write_json
from configuration_sinkhorn import SinkhornConfig
from modeling_sinkhorn import SinkhornForCausalLM


MODEL = {
    "vocab_size": 8000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "block_size": 64,
    "is_decoder": True,
}
BY_TOKEN = {
    "sort_granularity": "token",
    "sort_assignment": "hard",
    "sinkhorn_iterations": 0,
    "num_sorted_blocks": 4,
    "num_local_blocks": 2,
    "num_sink_blocks": 1,
}
FULL_ATTENTION = "full attention"
VARIANTS = {
    "sinkhorn, soft": {},
    "sinkhorn, hard": {"sort_assignment": "hard"},
    "each token chooses": {**BY_TOKEN, "sort_net": "keys"},
    "each token chooses, index": {**BY_TOKEN, "sort_net": "index"},
    "each token chooses, index of merged heads": {
        **BY_TOKEN,
        "sort_net": "index",
        "num_index_heads": MODEL["num_key_value_heads"],
    },
    FULL_ATTENTION: {"layer_types": ["full_attention"] * MODEL["num_hidden_layers"]},
}
PREFILL_CHUNK = 2048
QUICK = {"contexts": [1024], "rounds": 1}


def make_model(variant: str, **overrides) -> SinkhornForCausalLM:
    torch.manual_seed(0)
    return SinkhornForCausalLM(SinkhornConfig(**(MODEL | VARIANTS[variant] | overrides))).eval()


def check_parity(variant: str) -> float:
    """The largest difference of a logit between decoding and the full forward. Raises where it is above 1e-4."""
    model = make_model(variant, block_size=8, key_piece_size=4, initializer_range=0.1)
    tokens = torch.randint(model.config.vocab_size, (1, 45))
    expected = model(tokens, use_cache=False).logits
    cache = DynamicCache(config=model.config)
    steps = [model(part, cache=cache).logits for part in (tokens[:, :21], *tokens[:, 21:].split(1, dim=1))]
    error = (torch.cat(steps, dim=1) - expected).abs().max().item()
    if not error <= 1e-4:
        raise SystemExit(
            f"error: {variant}: decoding differs from the full forward by {error:.3g}; no speed is given."
        )
    return error


def fill(model: SinkhornForCausalLM, context: int, batch: int) -> DynamicCache:
    """A cache with `context` tokens in each of `batch` rows."""
    cache, config = DynamicCache(config=model.config), model.config
    if "full_attention" in config.layer_types:  # speed does not depend on the keys, and prefilling is quadratic
        shape = (batch, config.num_key_value_heads, context, config.head_dim)
        for layer in range(config.num_hidden_layers):
            cache.update(torch.randn(shape), torch.randn(shape), layer)
        return cache
    for start in range(0, context, PREFILL_CHUNK):
        size = min(PREFILL_CHUNK, context - start)
        model(torch.randint(config.vocab_size, (batch, size)), cache=cache, logits_to_keep=1)
    return cache


def megabytes(cache: DynamicCache) -> float:
    """Of every tensor that the layers hold."""
    tensors = [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors) / 2**20


def decode(model: SinkhornForCausalLM, cache: DynamicCache, batch: int, num_tokens: int) -> list[float]:
    """Milliseconds of each of `num_tokens` steps."""
    token, times = torch.randint(model.config.vocab_size, (batch, 1)), []
    for _ in range(num_tokens):
        start = time.perf_counter()
        token = model(token, cache=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
        times.append((time.perf_counter() - start) * 1000)
    return times


def summary(
    rounds: list[list[float]], of_full_attention: list[list[float]], first: list[list[float]]
) -> dict[str, Any]:
    """
    What is told of the steps of `rounds`, each of one block.

    Args:
        of_full_attention: those of full attention in the same rounds.
        first: those of the same model after the shortest context.
    """
    means, full = [statistics.mean(steps) for steps in rounds], [statistics.mean(steps) for steps in of_full_attention]
    median = statistics.median(means)
    inside = statistics.median(step for steps in rounds for step in steps[1:-1])
    return {
        "milliseconds_per_token": median,
        "spread": [min(means), max(means)],
        "ratio_to_first_context": median / statistics.median(statistics.mean(steps) for steps in first),
        "ratio_to_full_attention": statistics.median(a / b for a, b in zip(means, full)),
        # Contexts are whole blocks, so that the first step of each round opens one.
        "opening_step_ratio": statistics.median(steps[0] for steps in rounds) / inside,
    }


@torch.no_grad()
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="JSON file to write.")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096, 16384, 65536], help="In tokens.")
    parser.add_argument("--batch_size", type=int, default=1, help="Rows that are decoded together.")
    parser.add_argument("--rounds", type=int, default=7, help="Blocks of tokens that each figure is the median of.")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="After these, no further round begins, but the first. 0: no limit."
    )
    parser.add_argument("--quick", action="store_true", help="Short contexts, one round.")
    if parser.parse_args().quick:
        parser.set_defaults(**QUICK)
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes if arguments.minutes else math.inf

    parity = {variant: check_parity(variant) for variant in VARIANTS}
    models = {variant: make_model(variant) for variant in VARIANTS}
    cases = [(variant, context) for context in arguments.contexts for variant in VARIANTS]
    caches, memory = {}, {}
    for variant, context in tqdm(cases, desc="Filling caches"):
        caches[variant, context] = fill(models[variant], context, arguments.batch_size)
        memory[variant, context] = megabytes(caches[variant, context])
    times = {case: [] for case in cases}
    for round_number in tqdm(range(arguments.rounds + 1), desc="Rounds"):
        if round_number > 1 and time.monotonic() > deadline:
            break
        for variant, context in cases:
            cache = caches[variant, context]
            steps = decode(models[variant], cache, arguments.batch_size, MODEL["block_size"])
            if round_number > 0:  # the first one warms up
                times[variant, context].append(steps)

    rows = {
        variant: {
            str(context): summary(
                times[variant, context], times[FULL_ATTENTION, context], times[variant, arguments.contexts[0]]
            )
            | {"cache_megabytes": memory[variant, context]}
            for context in arguments.contexts
        }
        for variant in VARIANTS
    }
    write_json(
        arguments.results,
        {
            **provenance(),
            "command": ["scripts/benchmark_decoding.py", *sys.argv[1:]],
            "config": MODEL,
            "dtype": "float32",
            "batch_size": arguments.batch_size,
            "parity": parity,
            "rounds": len(times[cases[0]]),
            "rows": rows,
        },
    )
    print(
        f"\n| {'ms per token (of full attention)':32} | " + " | ".join(f"{c:>14,}" for c in arguments.contexts) + " |"
    )
    print(f"|-{'-' * 32}-|" + "".join(f"-{'-' * 14}:|" for _ in arguments.contexts))
    for variant, row in rows.items():
        cells = [f"{c['milliseconds_per_token']:.2f} ({c['ratio_to_full_attention']:.2f})" for c in row.values()]
        print(f"| {variant:32} | " + " | ".join(f"{cell:>14}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
