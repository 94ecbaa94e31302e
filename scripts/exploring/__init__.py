# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The parts of `explore_sorting.py`: read a document with a model, pack the numbers, and write the page."""
