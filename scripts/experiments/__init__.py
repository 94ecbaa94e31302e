# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The value of sorting: the same small model with each kind of attention, on tasks with and without long range."""
