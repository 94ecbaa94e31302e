# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""`matplotlib.pyplot` for programs that write figures to files: it needs no display."""

import matplotlib


matplotlib.use("Agg")  # before pyplot is imported

import matplotlib.pyplot as plt  # noqa: E402


__all__ = ["plt"]
