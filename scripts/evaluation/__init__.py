# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What `evaluate_long_context.py` measures of causal models: perplexity, retrieval, cost."""
