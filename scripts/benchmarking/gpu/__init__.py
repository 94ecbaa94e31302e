# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The parts of `benchmark_gpu.py`: accuracy, utilization of the device, attention and balancing alone."""
