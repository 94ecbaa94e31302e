# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What `plot_sorting.py` is made of: recording what a model sorts, drawing it, and naming the passages."""
