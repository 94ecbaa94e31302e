# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Checks and measures the model on a GPU: how far half precision and the Triton kernels are from float64, how much of the
time the GPU is busy, and how close attention and balancing come to its limits.

    python scripts/benchmark_gpu.py --results results/benchmarks/h100_kernels.json      # about 3 minutes on an H100

`benchmark.py` measures time and memory of whole models, on a GPU too. Weights and tokens are random. The file is
written after each part. "Without kernels" means with torch operations only.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarking.gpu.accuracy import parity
from benchmarking.gpu.device import ceilings
from benchmarking.gpu.operators import attention, balancing
from benchmarking.gpu.token_routing import token_routing
from benchmarking.gpu.utilization import compiled, utilization
from common.command_line import make_parser
from common.run_record import command, provenance, write_json


LENGTHS = (4096, 16384, 65536, 131072)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--results", type=Path, required=True, help="JSON file to write.")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="In tokens.")
    parser.add_argument("--seconds", type=float, default=0.3, help="For the rounds of each measurement.")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="What to measure.")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: benchmark_gpu.py measures a GPU, and torch sees none.")
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    record = {**provenance(), "command": command(), "seeds": {"weights": 0, "tokens": 0}, "seconds_of_part": {}}
    for part in arguments.parts:
        start = time.perf_counter()
        try:
            record[part] = PARTS[part](arguments)
        except RuntimeError as error:  # the other parts are worth having
            record[part] = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        record["seconds_of_part"][part] = time.perf_counter() - start
        write_json(arguments.results, record)
        print(f"{part} ({record['seconds_of_part'][part]:.0f} s): {record[part]}\n", flush=True)


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "ceilings": ceilings,
    "balancing": balancing,
    "attention": attention,
    "token_routing": token_routing,
    "parity": parity,
    "work": utilization,
    "compiled": compiled,
}


if __name__ == "__main__":
    main()
