# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""An error that the user can fix: one line without a traceback, exit status 1."""


class UserError(SystemExit):
    """The message says what is wrong and how to fix it. Raised before anything is written."""

    def __init__(self, message: str):
        super().__init__(f"error: {message}")
