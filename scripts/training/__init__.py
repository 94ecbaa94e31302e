# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What `run_classification.py`, `run_clm.py` and `run_mlm.py` share: flags, models, data, resuming."""
