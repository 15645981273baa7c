"""Limits that the operating system holds a process to, and all that it starts.

They are set in the process itself, or from outside by who owns it; its guardian has none.
"""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path

PROC = Path("/proc")


def limit_cpu(pid: int, seconds: float) -> None:
    """End a process when it has used so many seconds of CPU time from now on.

    The system counts whole seconds: they are rounded up. First comes SIGXCPU, a second later
    SIGKILL. What the process starts has as much for itself.
    """
    soft = math.ceil(_cpu_seconds_of(pid) + seconds)
    _lower(pid, resource.RLIMIT_CPU, soft, soft + 1)


def limit_files(pid: int, count: int) -> None:
    """Let a process have so many open files at a time, and no more."""
    _lower(pid, resource.RLIMIT_NOFILE, count, count)


def limit_address_space(pid: int, size_bytes: int, *, finally_so: bool) -> None:
    """Let a process take so much memory beyond what it has now, and no more.

    It is told of the limit by `MemoryError`.

    Parameters
    ----------
    pid
        The process.
    size_bytes
        Address space, whether or not it is used.
    finally_so
        Whether it can never be raised again.
    """
    most = _address_space_of(pid) + size_bytes
    hard = most if finally_so else resource.prlimit(pid, resource.RLIMIT_AS)[1]
    _lower(pid, resource.RLIMIT_AS, most, hard)


def _lower(pid: int, which: int, soft: int, hard: int) -> None:
    """Set a limit, but none above the one that holds already."""
    present = resource.prlimit(pid, which)[1]
    if present != resource.RLIM_INFINITY:
        soft = min(soft, present)
        hard = present if hard == resource.RLIM_INFINITY else min(hard, present)
    resource.prlimit(pid, which, (soft, hard))


def _address_space_of(pid: int) -> int:
    pages = (PROC / str(pid) / "statm").read_text("ascii").split()[0]
    return int(pages) * resource.getpagesize()


def _cpu_seconds_of(pid: int) -> float:
    fields = (PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    ticks: int = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
