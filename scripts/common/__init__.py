# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What programs of every room need: one-line errors, the command line, and the record of a run."""
