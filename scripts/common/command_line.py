# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""One form for the help text of every command that uses `argparse`."""

import argparse


def make_parser(description: str | None, command: str | None = None, epilog: str | None = None):
    """A parser that prints `description` unwrapped. `command`: the program with its subcommand, if it has one."""
    return argparse.ArgumentParser(
        prog=command, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
