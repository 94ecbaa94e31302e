# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The numbers that the figures of the lesson show: from `results/`, from formulas, or of a scheme."""

import json
from pathlib import Path
from typing import Any

import torch

from balancing_sinkhorn import causal_sinkhorn_balance, sinkhorn_balance
from benchmarking.plots import points
from configuration_sinkhorn import SinkhornConfig
from modeling_sinkhorn import SinkhornModel


ROOT = Path(__file__).resolve().parents[2]

# A matrix for the formulas: block 0 wants block 3 clearly, blocks 1 and 2 both want block 5, block 4 wants nothing.
LOGITS = [
    [0.1, 0.3, -0.2, 2.4, 0.0, 0.4],
    [0.2, -0.1, 0.5, 0.3, 0.1, 1.9],
    [1.2, 0.0, -0.3, 0.2, 0.4, 1.7],
    [0.3, 1.4, 0.2, 0.9, -0.2, 0.1],
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    [-0.1, 0.2, 1.6, 0.1, 0.8, 0.3],
]

TEMPERATURE, ITERATIONS = 0.75, 8  # the defaults of SinkhornConfig


def read_results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))


def as_list(tensor: torch.Tensor) -> list:
    return [as_list(part) for part in tensor] if tensor.dim() else round(float(tensor), 4)


def cost() -> dict[str, Any]:
    """Scores that one head of one layer computes for `L` tokens, by formula."""
    lengths, b = [2**power for power in range(6, 17)], 64
    return {
        "tokens": lengths,
        "full: L²": [length**2 for length in lengths],
        "local: bL": [b * length for length in lengths],
        "Sinkhorn: 2bL + (L/b)²": [2 * b * length + (length // b) ** 2 for length in lengths],
    }


def principle() -> dict[str, Any]:
    return {"sorted beside each block": [3, 5, 0, 1, 4, 2]}


def architecture() -> dict[str, Any]:
    return {
        "model": ["tokens", "embedding", "layers x n", "RMSNorm", "head"],
        "layer": ["RMSNorm", "attention", "+", "RMSNorm", "gated MLP", "+"],
        "attention": ["blocks", "descriptors", "SortNet", "balancing", "sorted + local", "softmax"],
    }


def layer_types() -> dict[str, Any]:
    """Attention maps of head 0 of one untrained layer of each type, 20 tokens in blocks of 4."""
    kinds = {
        "full": ("full_attention", "soft"),
        "local": ("local_attention", "soft"),
        "Sinkhorn, soft": ("sinkhorn_attention", "soft"),
        "Sinkhorn, hard": ("sinkhorn_attention", "hard"),
        "mixture": ("mixture_attention", "soft"),
        "SortCut, hard": ("sortcut_attention", "hard"),
    }
    drawn = {}
    for causal in (False, True):
        for name, (layer_type, assignment) in kinds.items():
            if not (causal and layer_type == "sortcut_attention"):
                torch.manual_seed(1)
                config = SinkhornConfig(
                    vocab_size=50,
                    hidden_size=16,
                    intermediate_size=24,
                    num_hidden_layers=1,
                    num_attention_heads=1,
                    block_size=4,
                    initializer_range=0.3,
                    layer_types=[layer_type],
                    sort_assignment=assignment,
                    sortcut_blocks=1,
                    is_decoder=causal,
                )
                config._attn_implementation = "eager"
                model = SinkhornModel(config).eval()
                with torch.no_grad():
                    outputs = model(torch.arange(5, 25).unsqueeze(0), output_attentions=True, use_cache=False)
                drawn[f"{name}, causal" if causal else name] = as_list(outputs.attentions[0][0, 0])
    return drawn


def balancing() -> dict[str, Any]:
    logits = torch.tensor(LOGITS)[None, None] / TEMPERATURE
    return {f"{number} iterations": as_list(sinkhorn_balance(logits, None, number)[0, 0]) for number in (0, 1, 2, 8)}


def temperature() -> dict[str, Any]:
    logits = torch.tensor(LOGITS)[None, None]
    return {
        f"temperature {value}": as_list(sinkhorn_balance(logits / value, None, ITERATIONS)[0, 0])
        for value in (2.0, 0.75, 0.25, 0.1)
    }


def causal() -> dict[str, Any]:
    """Equal logits, 16 blocks."""
    allowed = torch.ones(16, 16, dtype=torch.bool).tril(-1)[None, None]
    equal = torch.zeros(1, 1, 16, 16)
    return {
        f"{number} iterations": as_list(causal_sinkhorn_balance(equal, allowed, number)[0][0, 0])
        for number in (0, 1, 2, 8)
    }


def epochs(log: list[dict[str, Any]], score: str) -> list[list[float]]:
    """`[epoch, score]`; the last evaluation repeats the best one, so the first of each epoch counts."""
    found: dict[float, float] = {}
    for entry in log:
        found.setdefault(entry["epoch"], entry[score])
    return [[epoch, round(value, 4)] for epoch, value in found.items()]


def routing() -> dict[str, Any]:
    """Of each layer, the head that ends with the largest weight on the page with the answer."""
    seen = read_results("experiments/routing.json")
    points, last = seen["points"], seen["points"][-1]["weights"]
    drawn: dict[str, Any] = {"steps": [point["step"] for point in points]}
    drawn["accuracy"] = [round(point["accuracy"], 4) for point in points]
    for layer, heads in enumerate(last):
        head = heads.index(max(heads))
        drawn[f"weight, layer {layer}"] = [round(point["weights"][layer][head], 4) for point in points]
    return drawn | {"pages": seen["pages"], "page": seen["shown"]["page"], "matrices": seen["shown"]["matrices"]}


def memory() -> dict[str, Any]:
    rows = read_results("benchmarks/cpu.json")["rows"]
    names = ("floor", "local", "sinkhorn hard", "sinkhorn soft", "full attention", "Longformer", "BigBird")
    return {name: [[length, round(value, 1)] for length, value in points(rows[name], "megabytes")] for name in names}


def time() -> dict[str, Any]:
    rows = read_results("benchmarks/cpu.json")["rows"]
    drawn = {}
    for name in ("sinkhorn soft", "sinkhorn hard", "local", "full attention", "BERT", "ModernBERT", "Longformer"):
        cells = {int(length): cell.get("forward_backward", {}) for length, cell in rows[name].items()}
        drawn[name] = [
            [length, round(cells[length]["ratio_to_floor"], 3)]
            for length in sorted(cells)
            if "ratio_to_floor" in cells[length]
        ]
    return drawn


def decoding() -> dict[str, Any]:
    rows = read_results("benchmarks/decoding.json")["rows"]
    return {
        name: [
            [
                int(length),
                round(rows[name][length]["milliseconds_per_token"], 3),
                *(round(x, 3) for x in rows[name][length]["spread"]),
            ]
            for length in sorted(rows[name], key=int)
        ]
        for name in ("full attention", "sinkhorn, hard", "sinkhorn, soft", "each token chooses")
    }


def classification() -> dict[str, Any]:
    found = read_results("classification/sotu.json")
    return {
        f"by {split}": {
            name: [round(found[split]["summary"][name]["accuracy"][part], 4) for part in ("mean", "std")]
            for name in ("majority class", "TF-IDF, first 512 words", "TF-IDF, whole text", "this model")
        }
        for split in ("address", "president")
    }


def language() -> dict[str, Any]:
    models = read_results("language_modeling/sotu.json")["models"]
    names = {"this model": "Sinkhorn, soft", "local_attention": "local", "full_attention": "full"}
    return {
        label: {
            "validation": epochs(models[name]["log"], "eval_bits_per_byte"),
            "test": round(models[name]["scores"]["test"]["bits_per_byte"], 4),
        }
        for name, label in names.items()
    }


def each_token() -> dict[str, Any]:
    """What finds the needle, the work of the busiest block, and the time of a pass."""
    found = read_results("experiments/summary.json")["token_routing"]
    needles = {"the question ends its page": "causal_needle", "each word once": "causal_needle_once"}
    ways = {
        "local4": "window",
        "hard2": "each\nblock",
        "token_bilinear": "token,\nbilinear",
        "token_keys": "token,\nkeys",
        "token_index": "token,\nindex",
        "full": "full",
    }
    rows = read_results("benchmarks/token.json")["rows"]
    times = {"causal window of 7 blocks": "window", "causal token": "token,\nkeys", "causal full attention": "full"}

    def mean_and_spread(task: str, model: str, part: str, score: str) -> list[float]:
        values = found[task][model][part][score]
        return [round(values["mean"], 4), round(values["std"], 4)]

    return {
        "accuracy": {
            name: {label: mean_and_spread(task, model, "test", "accuracy") for model, label in ways.items()}
            for name, task in needles.items()
        },
        "busiest block": {
            name: {
                ways[model]: mean_and_spread("causal_needle", model + ending, "routing", "busiest_block")
                for model in ("token_bilinear", "token_keys", "token_index")
            }
            for name, ending in (("not balanced", ""), ("balanced", "_balanced"))
        },
        "time": {
            label: round(rows[name]["8192"]["forward_backward"]["ratio_to_floor"], 3) for name, label in times.items()
        },
    }


def conversion() -> dict[str, Any]:
    """SmolLM2 as it was, converted with several budgets, and with windows: perplexity, and what is found."""
    found = read_results("conversion/smollm2.json")["summary"]
    longer = read_results("conversion/smollm2_lengths.json")["summary"]
    names = {
        "source": "as it was",
        "converted": "converted",
        "index of 32": "index of 32, heads apart",
        "index": "index of 16",
        "keys": "means of keys",
        "index, 4 blocks": "4 blocks, index of 16",
        "window": "window",
    }
    source = longer["source"]["perplexity"]
    tasks = [f"{task}/4096" for task in ("passkey", "keys", "values", "variables", "quote")]
    lengths = ("1024", "2048", "4096", "8192")
    return {
        "perplexity": {
            label: {end: round(longer[name]["perplexity"][end] / source[end], 4) for end in (*lengths, "all")}
            for name, label in names.items()
        },
        "passkey": {
            label: {
                length: {
                    depth: round(cell["given"], 4)
                    for depth, cell in longer[name][f"passkey/{length}"]["depths"].items()
                }
                for length in lengths
            }
            for name, label in names.items()
            if all(f"passkey/{length}" in longer[name] for length in lengths)
        },
        "found": {
            names[name]: {task: round(found[name][task]["given"], 4) for task in tasks}
            for name in ("source", "converted", "window")
        },
    }


def interface() -> dict[str, Any]:
    """Of each model and pass: `[tokens, times faster]`, and `[tokens, seconds, shortest, longest]` with each attention."""
    rows = read_results("benchmarks/interface.json")["rows"]
    passes = {"forward": "forward", "forward_backward": "forward and backward"}
    drawn: dict[str, Any] = {"times faster": {}, "seconds": {}}
    for model, cells in rows.items():
        for kind, label in passes.items():
            measured = [
                (int(length), cells[length][kind]) for length in sorted(cells, key=int) if kind in cells[length]
            ]
            drawn["times faster"][f"{model}, {label}"] = [
                [length, round(cell["times_faster"], 3)] for length, cell in measured
            ]
            if model == "ModernBERT":
                for attention, name in (("sdpa", "SDPA"), ("sinkhorn", "sinkhorn")):
                    drawn["seconds"][f"{name}, {label}"] = [
                        [length, *(round(x, 3) for x in (cell[attention]["seconds"], *cell[attention]["spread"]))]
                        for length, cell in measured
                    ]
    return drawn
