# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""
Whether kernels in Triton run here, for `triton_balancing_sinkhorn.py` and `triton_attention_sinkhorn.py`: on an NVIDIA
GPU, or in Triton's interpreter.

As operations on whole tensors, balancing and block attention are many small kernels: at a few thousand tokens a GPU
spends most of the time waiting for the next launch. In these modules each is one custom op with its own backward.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


try:  # a folder on the Hub, or any package
    from .compatibility_sinkhorn import is_exporting
except ImportError:  # flat modules, as installed
    from compatibility_sinkhorn import is_exporting

# Before the import of triton, which takes time: where the kernels cannot run, it is not imported.
if torch.version.cuda is None and not os.environ.get("TRITON_INTERPRET"):
    raise ImportError("triton_sinkhorn needs torch built for CUDA, or Triton's interpreter (TRITON_INTERPRET=1).")
try:
    import triton  # noqa: F401  for the kernels' files
    import triton.language as tl  # noqa: F401
except ImportError as error:
    raise ImportError("triton_sinkhorn needs triton, which comes with torch's builds for CUDA.") from error


LEAST_COMPUTE_CAPABILITY = 8  # Ampere: Triton has no matrix units for older ones


def is_triton_supported(x: Tensor) -> bool:
    """Whether the kernels can run on the device of `x`. Not in an exported graph, which must run on any device."""
    if not x.is_cuda or torch.version.hip is not None or torch.jit.is_tracing() or is_exporting():
        return False
    return torch.cuda.get_device_properties(x.device).major >= LEAST_COMPUTE_CAPABILITY


def on_its_device(function: Callable) -> Callable:
    """Launches kernels on the device of the tensors. In a model on several devices it may not be the current one."""

    @functools.wraps(function)
    def launch(first: Tensor, *others: Any) -> Any:
        with torch.cuda.device_of(first):
            return function(first, *others)

    return launch
