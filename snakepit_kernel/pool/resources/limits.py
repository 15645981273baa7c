"""Resource limits of one worker."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...errors import suggest
from ...processes.os_limits import NotDelegated, find_parent
from ...validation import bytes_meant

LEAST_FILES = 128
"""Lowest ``open_files``; a worker itself has about 70 open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Resource limits of each worker of a pool; None for what is not limited.

    The operating system enforces them, not this package; the guardian has no limits.

    Attributes
    ----------
    address_space_bytes
        Memory that a worker's process may ask for beyond what it has when it is ready, whether or
        not it uses it; then `MemoryError` is raised in it. The adapter's own import may take the
        same amount before that. Each process that the worker starts has the same total limit.
    cpu_seconds
        CPU time of a worker's process in all its life, rounded up to whole seconds; then it is
        ended, `WorkerDied` says why, and another one takes its place.
    open_files
        Files and sockets that are open at a time, the worker's own 70 or so included; at least 128.
    memory_bytes, cpus
        Memory in use, and cores, of a worker and all that it starts together: by a control group,
        which needs cgroup v2 and its delegation to this user. A worker that uses more memory is
        ended with all that it started, and `WorkerDied` says why; one that uses more CPU time is
        throttled.

    Raises
    ------
    TypeError, ValueError
        A limit is invalid; the text names it.
    """

    address_space_bytes: int | None = None
    cpu_seconds: float | None = None
    open_files: int | None = None
    memory_bytes: int | None = None
    cpus: float | None = None

    def __post_init__(self) -> None:
        for name in (item.name for item in fields(self)):
            if (value := getattr(self, name)) is not None:
                _check(name, value)

    @property
    def controllers(self) -> tuple[str, ...]:
        """The cgroup controllers that these limits need."""
        wanted = {"memory": self.memory_bytes, "cpu": self.cpus}
        return tuple(name for name, value in wanted.items() if value is not None)

    def of_process(self) -> dict[str, float]:
        """Return the limits that apply to a single process, by name."""
        names = ("address_space_bytes", "cpu_seconds", "open_files")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def why_ended(self, status: int | None, *, ran_out_of_memory: bool) -> str:
        """Describe which limit ended a worker, by its exit status; empty for none of them."""
        if status == -signal.SIGXCPU and self.cpu_seconds is not None:
            return f"used its {self.cpu_seconds:g} s of CPU time (limits.cpu_seconds)"
        if ran_out_of_memory:
            return f"took more than its {self.memory_bytes:,} bytes of memory (limits.memory_bytes)"
        return ""


def check_limits(given: Limits | Mapping[str, object] | None) -> Limits:
    """Return limits as a user gave them.

    Raises
    ------
    TypeError, ValueError
        A limit is unknown or invalid; the text names it.
    """
    if given is None:
        return Limits()
    if isinstance(given, Limits):
        return given
    if not isinstance(given, Mapping):
        msg = f"limits must be Limits(…) or a mapping, not {given!r}"
        raise TypeError(msg)
    values: dict[str, Any] = dict(given)
    known = [item.name for item in fields(Limits)]
    for name in values:
        if name not in known:
            msg = f"limits has no {name!r}{suggest(str(name), known)}"
            raise ValueError(msg)
    return replace(Limits(), **values)


def _check(name: str, value: object) -> None:
    is_whole = name.endswith("_bytes") or name == "open_files"
    if isinstance(value, bool) or not isinstance(value, int if is_whole else int | float):
        kind = "a whole number" if is_whole else "a number"
        meant = bytes_meant(name, value)
        msg = f"limits: {name} must be {kind} or None, not {value!r}{meant}"
        raise TypeError(msg)
    if not 0 < value < float("inf"):
        msg = f"limits: {name} must be positive, not {value}"
        raise ValueError(msg)
    if name == "open_files" and value < LEAST_FILES:
        msg = f"limits: open_files must be at least {LEAST_FILES}, not {value}"
        raise ValueError(msg)


def find_group(limits: Limits) -> Path | None:
    """Return the parent of the workers' control groups; None if none are needed.

    Raises
    ------
    ValueError
        They are needed but cannot be created here; the text says why, and what to use.
    """
    if not limits.controllers:
        return None
    try:
        return find_parent(limits.controllers)
    except NotDelegated as error:
        named = [n for n in ("memory_bytes", "cpus") if getattr(limits, n) is not None]
        instead = []
        if limits.memory_bytes is not None:
            instead.append("address_space_bytes, or max_memory_bytes of the pool, for memory")
        if limits.cpus is not None:
            instead.append("cpu_seconds, or env={'OMP_NUM_THREADS': …}, for cpus")
        msg = (
            f"limits: {' and '.join(named)} cannot be held here: {error}; use "
            f"{' and '.join(instead)}, or have cgroup v2 delegated (systemd: Delegate=yes)"
        )
        raise ValueError(msg) from None
