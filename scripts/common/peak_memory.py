# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""The most memory that this process used since a moment, on a CPU."""

import contextlib
import ctypes
import resource
import sys
from pathlib import Path


def return_freed_memory_at_once() -> None:
    """Makes malloc map every tensor separately, so that freed memory is not kept for the next one."""
    m_mmap_threshold = -3
    _call_libc("mallopt", m_mmap_threshold, 2**16)


def _call_libc(function: str, *arguments: int) -> None:
    """A function of glibc's malloc. With another libc, figures are a little less exact."""
    with contextlib.suppress(AttributeError, OSError):
        getattr(ctypes.CDLL(None), function)(*arguments)


def reset_peak() -> int:
    """Resets the high-water mark. Returns the bytes in use now, without memory that malloc only holds back."""
    _call_libc("malloc_trim", 0)
    # Where it cannot be reset (not on Linux), the smaller pass runs first, so the larger one exceeds its mark.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") if Path("/proc/self/status").exists() else _max_resident()


def peak_since(before: int) -> int:
    return (_status("VmHWM") if Path("/proc/self/status").exists() else _max_resident()) - before


def _status(field: str) -> int:
    """Bytes, from /proc/self/status, which gives kB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _max_resident() -> int:
    """Bytes; macOS counts in bytes, others in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
