# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The parts of `plot_sorting.py`: record what a model sorts, draw it, and list the passages."""
