# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What sorting is worth: the same small model with each kind of attention, on tasks that need a long reach or do not."""
