# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""What programs of every room need: errors that are one line, and the record of a run."""
