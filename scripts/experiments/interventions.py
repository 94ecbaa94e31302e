# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
What does a trained language model use its sorting for? Scores it on held-out text unchanged, and with the sort
matrices of all layers replaced: by the result for equal logits, by the block before, by the first block, by an even
mixture of all earlier blocks, and by nothing (only its own block).

    python scripts/run_experiments.py interventions --model_name_or_path checkpoints/sinkhorn-sotu-lm
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer

import sort_net_sinkhorn
from common.command_line import make_parser
from common.run_record import provenance, write_json
from modeling_sinkhorn import SinkhornForCausalLM
from training.language_data import LanguageModelingDataArguments, load_documents, to_chunks
from training.language_modeling import causal_scores as scores
from training.language_modeling import count_tokens


ROOT = Path(__file__).resolve().parents[2]


Replace = Callable[..., Tensor]  # logits, allowed pairs, iterations, what else balancing takes: to a sort matrix
balance = sort_net_sinkhorn.causal_sinkhorn_balance


def trained(logits: Tensor, allowed: Tensor, iterations: int, *rest) -> Tensor:
    return balance(logits, allowed, iterations, *rest)[0]


def equal_logits(logits: Tensor, allowed: Tensor, iterations: int, *rest) -> Tensor:
    return balance(torch.zeros_like(logits), allowed, iterations, *rest)[0]


def without_balancing(logits: Tensor, allowed: Tensor, iterations: int, *rest) -> Tensor:
    return balance(logits, allowed, 0)[0]


def block_before(logits: Tensor, *rest) -> Tensor:
    return torch.ones_like(logits).tril(-1).triu(-1)


def first_block(logits: Tensor, *rest) -> Tensor:
    matrix = torch.zeros_like(logits)
    matrix[..., 1:, 0] = 1
    return matrix


def even_mixture(logits: Tensor, allowed: Tensor, *rest) -> Tensor:
    return balance(torch.zeros_like(logits), allowed, 0)[0]


REPLACEMENTS: dict[str, Replace] = {
    "as trained": trained,
    "equal logits, balanced": equal_logits,
    "trained logits, not balanced": without_balancing,
    "the block before": block_before,
    "the first block": first_block,
    "all earlier blocks evenly": even_mixture,
}


@contextmanager
def replacing_sort_matrices(replace: Replace) -> Iterator[list[Tensor]]:
    """Inside it, causal sort matrices are made by `replace`; gives the list of those that were made."""
    matrices: list[Tensor] = []

    def sort(logits: Tensor, allowed: Tensor, iterations: int, *rest) -> tuple[Tensor, None]:
        matrices.append(replace(logits, allowed, iterations, *rest))
        return matrices[-1], None

    sort_net_sinkhorn.causal_sinkhorn_balance = sort
    try:
        yield matrices
    finally:
        sort_net_sinkhorn.causal_sinkhorn_balance = balance


@torch.no_grad()
def evaluate(model: SinkhornForCausalLM, rows: Tensor, batch_size: int, tokens_per_byte: float) -> dict[str, float]:
    counts = sum(
        count_tokens(model(batch, use_cache=False).logits[:, :-1], batch[:, 1:]).sum(0)
        for batch in tqdm(rows.split(batch_size), leave=False)
    )
    loss, predictions, hits = counts.tolist()
    return scores(loss / predictions, hits / predictions, tokens_per_byte)


@torch.no_grad()
def mean_weights(model: SinkhornForCausalLM, rows: Tensor, replace: Replace) -> list[dict[str, float]]:
    """Of each layer, averaged over rows, heads and the blocks from the third on: what goes to which earlier block."""
    with replacing_sort_matrices(replace) as matrices:
        model(rows, use_cache=False)
    layers = []
    for matrix in matrices:
        late = matrix[:, :, 2:]
        before, first = late.diagonal(1, -2, -1).mean().item(), late[..., 0].mean().item()
        layers.append({"the block before": before, "the first block": first, "others": 1 - before - first})
    return layers


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, "run_experiments.py interventions")
    parser.add_argument(
        "--model_name_or_path", default="checkpoints/sinkhorn-sotu-lm", help="A causal Sinkhorn model."
    )
    parser.add_argument("--chunk_length", type=int, default=1024, help="Tokens per row.")
    parser.add_argument("--batch_size", type=int, default=8, help="Rows at a time.")
    parser.add_argument("--max_rows", type=int, default=64, help="Score the first rows alone.")
    parser.add_argument("--results_file", type=Path, default=ROOT / "results" / "experiments" / "interventions.json")
    options = parser.parse_args(arguments)
    names = ("model_name_or_path", "chunk_length", "batch_size", "max_rows")
    asked = [part for name in names for part in (f"--{name}", getattr(options, name))]
    model = SinkhornForCausalLM.from_pretrained(options.model_name_or_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path)
    data = LanguageModelingDataArguments(max_eval_samples=options.max_rows)
    chunks, rates = to_chunks(load_documents(data), tokenizer, options.chunk_length, data)
    rows = torch.tensor(chunks["test"]["input_ids"])
    record = {
        **provenance(),
        "command": ["scripts/run_experiments.py", "interventions", *map(str, asked)],
        "rows": list(rows.shape),
        "scores": {},
        "weights": {},
    }
    for name, replace in REPLACEMENTS.items():
        with replacing_sort_matrices(replace):
            record["scores"][name] = evaluate(model, rows, options.batch_size, rates["test"])
        record["weights"][name] = mean_weights(model, rows[: options.batch_size], replace)
        print(f"{name}: perplexity {record['scores'][name]['perplexity']:.1f}", flush=True)
    config = model.config.to_dict() | {"layer_types": ["local_attention"] * model.config.num_hidden_layers}
    local = SinkhornForCausalLM(model.config.__class__(**config)).eval()
    local.load_state_dict(model.state_dict(), strict=False)
    record["scores"]["nothing"] = evaluate(local, rows, options.batch_size, rates["test"])
    print(f"nothing: perplexity {record['scores']['nothing']['perplexity']:.1f}")
    write_json(options.results_file, record)
