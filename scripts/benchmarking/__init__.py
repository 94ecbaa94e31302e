# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What `benchmark*.py` share: models, passes, timing, memory, parity, report and plots."""
