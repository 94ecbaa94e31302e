# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
The scripts in two processes on the CPU, and DDP without a search for unused parameters. `torchrun` starts them, since
`accelerate launch --cpu` starts one process whatever `--num_processes` says; in them the Trainer works through accelerate.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_language_modeling import TINY as TINY_LM
from test_language_modeling import write_documents
from test_run_classification import TINY, write_table

from helpers import SCRIPTS


def launch(script: str, *flags) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(SCRIPTS / script), *map(str, flags)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS.parent)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow  # two processes, each with its own import of everything
@pytest.mark.parametrize("part", ["test", "validation"])
def test_classification_in_two_processes(tmp_path: Path, part: str):
    table = write_table(tmp_path / "train.csv", 60)
    flags = ["--train_file", table, f"--{part}_file", table, *TINY, "--ddp_find_unused_parameters", "false"]
    result = launch("run_classification.py", "--output_dir", tmp_path / "out", *flags, "--learning_rate", "0.01")
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count(f"On the 60 {part} documents") == 1
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["machine"]["processes"] == 2
    assert record["part"] == part and record["scores"]["this model"]["accuracy"] == 1.0
    steps = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"]
    assert steps == 2 * math.ceil(math.ceil((60 if part == "validation" else 54) / 2) / 4), "each reads half of them"
    if part == "test":
        assert len((tmp_path / "out" / "predict_results.tsv").read_text().splitlines()) == 61


@pytest.mark.slow
def test_language_modelling_in_two_processes(tmp_path: Path):
    flags = ["--train_file", write_documents(tmp_path / "train.jsonl", 60), *TINY_LM, "--block_size", "32"]
    flags += ["--ddp_find_unused_parameters", "false", "--learning_rate", "0.02"]
    result = launch("run_clm.py", "--output_dir", tmp_path / "out", *flags)
    assert result.returncode == 0, result.stderr[-3000:]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["machine"]["processes"] == 2
    assert record["models"]["this model"]["scores"]["validation"]["perplexity"] < 10
