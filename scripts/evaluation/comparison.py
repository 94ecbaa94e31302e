# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What a conversion kept and won: source, converted model and a window of as many keys, on texts held out."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from evaluation.models import Candidate, default_device
from evaluation.report import table
from evaluation.results import Results
from evaluation.running import CHARACTERS_PER_TOKEN, Measures, evaluate
from evaluation.texts import long_texts


NUM_TEXTS = 2
DEPTHS = (0.1, 0.5, 0.9)
SHORTEST = 512  # that has room for a passkey, by any tokenizer


def compare(source: str, hub: dict[str, Any], folder: Path, config: PreTrainedConfig, length: int) -> str:
    """
    The table, of few cases: two texts, three passkeys, one time. Its numbers are in the folder's `evaluation.json`.

    Args:
        source: folder or Hub model, and `hub` what opens it.
        config: of the converted model in `folder`.
        length: tokens of a text.
    """
    length = min(length, config.max_position_embeddings)
    candidates = [(Candidate("source", source, ""), hub), (Candidate("converted", str(folder), ""), {})]
    if "sinkhorn_attention" in config.layer_types:
        blocks = config.num_local_blocks + config.num_sorted_blocks
        window = f"layer_types=local_attention,num_local_blocks={blocks}"
        candidates.append((Candidate("window of as many keys", str(folder), window), {}))
    texts = long_texts(None, "text", NUM_TEXTS, CHARACTERS_PER_TOKEN * length)
    lengths = sorted({max(1, length // 2), length})
    file = folder / "evaluation.json"
    file.unlink(missing_ok=True)  # of an earlier conversion
    results = Results(file)
    answers = ("passkey", "cost") if length >= SHORTEST else ("cost",)
    for tasks, of_lengths in ((("perplexity",), lengths), (answers, lengths[-1:])):
        measures = Measures(tasks, of_lengths, DEPTHS, seeds=1, rounds=1, texts=texts)
        evaluate(candidates, measures, results, "float32", default_device())
    return table(results.models)
