# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Text from causal language models, for `run_generation.py` and `chat.py`."""
