# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Whether kernels in Triton run here, for `triton_balancing_sinkhorn.py` and `triton_attention_sinkhorn.py`: on an NVIDIA GPU, or
in Triton's interpreter.

Written as whole-tensor operations, balancing and block attention are many small kernels: at a few thousand tokens a GPU waits
for the next one to be launched most of the time. There each is one custom op, with a backward of its own.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


# Before triton, whose import takes time: where nothing could run the kernels, nothing waits for it.
if torch.version.cuda is None and not os.environ.get("TRITON_INTERPRET"):
    raise ImportError("triton_sinkhorn needs torch built for CUDA, or Triton's interpreter (TRITON_INTERPRET=1).")
try:
    import triton  # noqa: F401  for the kernels' files
    import triton.language as tl  # noqa: F401
except ImportError as error:
    raise ImportError("triton_sinkhorn needs triton, which comes with torch's builds for CUDA.") from error


LEAST_COMPUTE_CAPABILITY = 8  # Ampere: Triton has no matrix units for older ones


def runs_on(x: Tensor) -> bool:
    """Whether the device that holds `x` runs the kernels, and they may be used: an exported graph must run anywhere."""
    if not x.is_cuda or torch.version.hip is not None or torch.jit.is_tracing() or torch.compiler.is_exporting():
        return False
    return torch.cuda.get_device_properties(x.device).major >= LEAST_COMPUTE_CAPABILITY


def on_its_device(function: Callable) -> Callable:
    """Triton launches on the current device, which in a model spread over several need not be that of the tensors."""

    @functools.wraps(function)
    def launch(first: Tensor, *others: Any) -> Any:
        with torch.cuda.device_of(first):
            return function(first, *others)

    return launch
