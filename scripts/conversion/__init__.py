# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What converting a pretrained model needs beside its weights: a text for calibration, a check, a card."""
