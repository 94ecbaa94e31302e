# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What is measured of each model, and the loop over models that measures it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from evaluation.cost import measure
from evaluation.models import Candidate, description, keys_read, load
from evaluation.results import Results
from evaluation.scoring import answer_scores, nats_by_position
from evaluation.tasks import RETRIEVAL, make_prompt


ALL_TASKS = ("perplexity", *RETRIEVAL, "cost")
CHARACTERS_PER_TOKEN = 8  # more than any text here has, so that texts are long enough


class Measures(NamedTuple):
    """Cases are made of these; `texts` are for perplexity, and are what things are hidden in."""

    tasks: Sequence[str]
    lengths: Sequence[int]  # from the shortest
    depths: Sequence[float]
    seeds: int
    rounds: int
    texts: list[str]

    def cases(self) -> list[str]:
        """`task/length/...`"""
        names = []
        if "perplexity" in self.tasks:
            names += [f"perplexity/{self.lengths[-1]}/{number}" for number in range(len(self.texts))]
        for task in (task for task in self.tasks if task in RETRIEVAL):
            names += [
                f"{task}/{n}/{depth}/{seed}"
                for n in self.lengths
                for depth in self.depths
                for seed in range(self.seeds)
            ]
        return names + [f"cost/{length}" for length in self.lengths if "cost" in self.tasks]

    def run(self, case: str, model: Any, tokenizer: Any) -> dict[str, Any]:
        task, length, *place = case.split("/")
        length = int(length)
        if task == "cost":
            return measure(model, length, self.rounds) | {"keys_read": keys_read(model.config, length)}
        if task == "perplexity":
            tokens = tokenizer(self.texts[int(place[0])], verbose=False)["input_ids"][:length]
            return nats_by_position(model, tokens, [0, *self.lengths]) | {"ends": list(self.lengths)}
        depth, seed = float(place[0]), int(place[1])
        prompt = make_prompt(task, tokenizer, length, depth, seed, self.texts[seed % len(self.texts)])
        return answer_scores(model, prompt)


def evaluate(
    candidates: Sequence[tuple[Candidate, dict[str, Any]]],
    measures: Measures,
    results: Results,
    dtype: str,
    device: str,
) -> None:
    """Candidates, each with what the Hub's functions need to open it. Measures what `results` has not yet."""
    cases = measures.cases()
    for candidate, hub in candidates:
        model, tokenizer = load(candidate, dtype, device, hub)
        results.begin(candidate.label, description(candidate, model))
        missing = [case for case in cases if not results.has(candidate.label, case)]
        if tokenizer.chat_template is None and any(case.startswith("chat/") for case in missing):
            print(f"{candidate.label} is not asked by chat: its tokenizer has no chat template.")
            missing = [case for case in missing if not case.startswith("chat/")]
        for case in tqdm(missing, desc=candidate.label):
            results.put(candidate.label, case, measures.run(case, model, tokenizer))
        del model
        if device == "cuda":
            torch.cuda.empty_cache()
