# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What `maintain.py` does: checkpoints, cards, figures, tables, shipped data, sweeps."""
