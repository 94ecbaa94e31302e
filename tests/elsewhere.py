# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
A machine without this package: a process away from the repository, with the package's modules hidden.

Importing torch and transformers is what a process costs. It does that once, and forks for every job: code that a job
loads registers its classes for the whole process.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
HIDDEN = sorted(path.stem for path in ROOT.glob("*_sinkhorn.py"))

CHILD = """
import gc, importlib.abc, inspect, json, os, pathlib, runpy, signal, sys, traceback

hidden = json.loads(sys.argv[1])


class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in hidden:
            raise ModuleNotFoundError(f"No module named {name!r} (hidden)", name=name)


sys.meta_path.insert(0, Hide())

import huggingface_hub
import torch
import transformers

# Loaded on first use, so each fork would load them again.
import transformers.core_model_loading
import transformers.conversion_mapping
import transformers.dynamic_module_utils
import transformers.loss.loss_utils
import transformers.masking_utils
import transformers.modeling_layers
import transformers.modeling_rope_utils
import transformers.utils.output_capturing
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForQuestionAnswering
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer
from transformers import GenerationMixin, HfArgumentParser, PreTrainedModel, PreTrainedTokenizerFast, pipeline

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
inspect.getmodule(Hide.find_spec.__code__)  # makes its table of all modules, which torch asks for
gc.freeze()  # else a collection in a fork copies all of it


def found():
    names = []
    for name in hidden:
        try:
            __import__(name)
            names.append(name)
        except ModuleNotFoundError:
            pass
    return names


def work(job):
    signal.alarm(1200)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # nobody is there to be asked for trust
    output = os.open(job["output"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        os.environ.update(job["environment"])
        huggingface_hub.constants.HF_HUB_OFFLINE = job["offline"]  # what the variable is read into
        exec(compile(job["program"], "<program of the test>", "exec"), globals())
        report = globals()[job["function"]](**job["arguments"])
        pathlib.Path(job["report"]).write_text(json.dumps(report, default=float), encoding="utf-8")
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1 if error.code else 0
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


for line in sys.stdin:
    pid = os.fork()
    if not pid:
        work(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass
class Result:
    status: int
    output: str
    report: Any

    def checked(self) -> Any:
        assert self.status == 0, self.output
        return self.report


class Elsewhere:
    """`do("f", program, {...})` calls the function `f` of a program there. `home` names the user's files."""

    def __init__(self, folder: Path, endpoint: str):
        self.folder = folder
        (folder / "child.py").write_text(CHILD, encoding="utf-8")
        # Neither the current folder is searched, nor that of the script, nor the user's.
        command = [sys.executable, "-P", "-s", str(folder / "child.py"), json.dumps(HIDDEN)]
        environment = environment_without_ours(endpoint, folder / "home")
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def do(
        self,
        function: str,
        program: str,
        arguments: dict[str, Any],
        *,
        home: str = "somebody",
        environment: dict[str, str] | None = None,
        offline: bool = False,
    ) -> Result:
        report, output = self.folder / "report.json", self.folder / "output.txt"
        report.unlink(missing_ok=True)
        # The libraries read where the home is once, when they are imported: it is a link.
        (self.folder / f"home of {home}").mkdir(exist_ok=True)
        (self.folder / "home").unlink(missing_ok=True)
        (self.folder / "home").symlink_to(self.folder / f"home of {home}", target_is_directory=True)
        job = {
            "program": program,
            "function": function,
            "arguments": arguments,
            "environment": environment or {},
            "offline": offline,
            "report": str(report),
            "output": str(output),
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        ended = self.process.stdout.readline()
        assert ended, "the process that stands for another machine has died"
        status = int(ended)
        answer = json.loads(report.read_text(encoding="utf-8")) if report.exists() else None
        return Result(status, output.read_text(encoding="utf-8"), answer)


@contextmanager
def started(folder: Path, endpoint: str) -> Iterator[Elsewhere]:
    there = Elsewhere(folder, endpoint)
    try:
        yield there
    finally:
        there.process.stdin.close()
        there.process.wait(timeout=60)


def environment_without_ours(endpoint: str, home: Path, **more: str) -> dict[str, str]:
    """Without tokens, proxies or settings of this machine."""
    unwanted = ("PYTHON", "HF_", "TRANSFORMERS_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(unwanted) and not name.lower().endswith("_proxy")
    }
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return kept | settings | {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | more
