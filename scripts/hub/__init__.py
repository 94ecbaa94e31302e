# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Checks of a folder and its card before `push_to_hub.py` uploads them."""
