# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Measures time per token and cache memory in decoding, at several context lengths. It compares soft and hard Sinkhorn
attention, and routing by token, with full attention in the same network, with the library's `DynamicCache`. Rounds are
interleaved in one process.

    python scripts/benchmark_decoding.py --results results/benchmarks/decoding.json
    python scripts/benchmark_decoding.py --results runs/quick.json --contexts 512 2048 --rounds 2

A round decodes one block of tokens, so every figure includes one sorting pass. Weights and tokens are random: the cost
does not depend on them. There are no figures unless decoding equals the full forward pass.
"""

import statistics
import sys
import time
from pathlib import Path

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
VARIANTS = {
    "sinkhorn, soft": {},
    "sinkhorn, hard": {"sort_assignment": "hard"},
    "each token chooses": {
        "sort_granularity": "token",
        "sort_assignment": "hard",
        "sort_net": "keys",
        "sinkhorn_iterations": 0,
        "num_sorted_blocks": 4,
        "num_local_blocks": 2,
        "num_sink_blocks": 1,
    },
    "full attention": {"layer_types": ["full_attention"] * MODEL["num_hidden_layers"]},
}
PREFILL_CHUNK = 2048


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


def fill(model: SinkhornForCausalLM, context: int) -> DynamicCache:
    """A cache with `context` tokens."""
    cache, config = DynamicCache(config=model.config), model.config
    if "full_attention" in config.layer_types:  # speed does not depend on the keys, and prefilling is quadratic
        shape = (1, config.num_key_value_heads, context, config.head_dim)
        for layer in range(config.num_hidden_layers):
            cache.update(torch.randn(shape), torch.randn(shape), layer)
        return cache
    for start in range(0, context, PREFILL_CHUNK):
        size = min(PREFILL_CHUNK, context - start)
        model(torch.randint(config.vocab_size, (1, size)), cache=cache, logits_to_keep=1)
    return cache


def megabytes(cache: DynamicCache) -> float:
    """Of every tensor that the layers hold."""
    tensors = [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors) / 2**20


def decode(model: SinkhornForCausalLM, cache: DynamicCache, num_tokens: int) -> float:
    """Milliseconds per token."""
    token = torch.randint(model.config.vocab_size, (1, 1))
    start = time.perf_counter()
    for _ in range(num_tokens):
        token = model(token, cache=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
    return (time.perf_counter() - start) / num_tokens * 1000


@torch.no_grad()
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="JSON file to write.")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 4096, 16384, 65536], help="In tokens.")
    parser.add_argument("--rounds", type=int, default=7, help="Blocks of tokens that each figure is the median of.")
    arguments = parser.parse_args()

    parity = {variant: check_parity(variant) for variant in VARIANTS}
    models = {variant: make_model(variant) for variant in VARIANTS}
    cases = [(variant, context) for context in arguments.contexts for variant in VARIANTS]
    caches, memory = {}, {}
    for variant, context in tqdm(cases, desc="Filling caches"):
        caches[variant, context] = fill(models[variant], context)
        memory[variant, context] = megabytes(caches[variant, context])
    times = {case: [] for case in cases}
    for round_number in tqdm(range(arguments.rounds + 1), desc="Rounds"):
        for variant, context in cases:
            milliseconds = decode(models[variant], caches[variant, context], MODEL["block_size"])
            if round_number > 0:  # the first one warms up
                times[variant, context].append(milliseconds)

    rows = {}
    for variant in VARIANTS:
        first = statistics.median(times[variant, arguments.contexts[0]])
        rows[variant] = {
            str(context): {
                "milliseconds_per_token": statistics.median(times[variant, context]),
                "spread": [min(times[variant, context]), max(times[variant, context])],
                "ratio_to_first_context": statistics.median(times[variant, context]) / first,
                "cache_megabytes": memory[variant, context],
            }
            for context in arguments.contexts
        }
    write_json(
        arguments.results,
        {
            **provenance(),
            "command": ["scripts/benchmark_decoding.py", *sys.argv[1:]],
            "config": MODEL,
            "dtype": "float32",
            "parity": parity,
            "rounds": arguments.rounds,
            "rows": rows,
        },
    )
    print(f"\n| {'ms per token (MB of cache)':26} | " + " | ".join(f"{c:>15,}" for c in arguments.contexts) + " |")
    print(f"|-{'-' * 26}-|" + "".join(f"-{'-' * 15}:|" for _ in arguments.contexts))
    for variant, row in rows.items():
        cells = [f"{cell['milliseconds_per_token']:.2f} ({cell['cache_megabytes']:.1f})" for cell in row.values()]
        print(f"| {variant:26} | " + " | ".join(f"{cell:>15}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
