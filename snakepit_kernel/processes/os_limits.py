"""Limits that the operating system enforces on a process: resource limits and control groups.

A control group (cgroup v2) limits the memory and CPU of one process and all that it starts. Groups
are created next to our own, where the system has *delegated* that to this user. A group is removed
with its run: it is an empty directory then, which `guardian.remove` removes.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
from collections.abc import Sequence
from pathlib import Path

from ..ids import is_run_id, new_run_id
from .guardian import remove

PERIOD = 100_000
"""Microseconds in which a group gets its share of CPU time."""

_PREFIX = "snakepit-"

OWN = Path("/proc/self")


class NotDelegated(Exception):
    """No group can be created here; the text says why."""


def find_parent(controllers: Sequence[str], own: Path = OWN) -> Path:
    """Return the group in which this process can create groups.

    Parameters
    ----------
    controllers
        Controllers that the new groups need: ``"memory"``, ``"cpu"``.
    own
        Directory of this process's ``mountinfo`` and ``cgroup`` files.

    Raises
    ------
    NotDelegated
        There is none.
    """
    mount, root = _mount(own)
    present = _words(mount / "cgroup.controllers")
    for name in controllers:
        if name not in present:
            msg = f"cgroup v2 at {mount} does not have the controller {name!r} on this machine"
            raise NotDelegated(msg)
    group = mount / os.path.relpath(_own_group(own), root)
    for folder in (group, *group.parents):
        if not folder.is_relative_to(mount):
            break
        is_delegated = set(controllers) <= set(_words(folder / "cgroup.subtree_control"))
        if is_delegated and _is_writable(folder):
            return folder
    msg = (
        f"no cgroup above this process (it is in {group}) hands the controllers "
        f"{', '.join(controllers)} on and can be written by this user"
    )
    raise NotDelegated(msg)


class Cgroup:
    """A control group, created before its first process and removed after its last.

    Parameters
    ----------
    parent
        The group that it is created in.

    Attributes
    ----------
    path
        Its directory, which `make` makes.
    """

    def __init__(self, parent: Path) -> None:
        self.path = parent / f"{_PREFIX}{new_run_id()}"

    def make(self, *, memory_bytes: int | None, cpus: float | None) -> None:
        """Create it, with its limits.

        Raises
        ------
        OSError
            It cannot be created. Nothing is left behind.
        """
        self.path.mkdir()
        try:
            if memory_bytes is not None:
                (self.path / "memory.max").write_text(str(memory_bytes))
                (self.path / "memory.oom.group").write_text("1")  # kill all, not one by chance
                with contextlib.suppress(OSError):  # a machine without swap
                    (self.path / "memory.swap.max").write_text("0")
            if cpus is not None:
                (self.path / "cpu.max").write_text(f"{int(cpus * PERIOD)} {PERIOD}")
        except OSError:
            self.remove()
            raise

    def add(self, pid: int) -> None:
        """Move a process into it, and with it everything that process starts from now on."""
        (self.path / "cgroup.procs").write_text(str(pid))

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether a process in it was killed because the group ran out of memory."""
        words = _words(self.path / "memory.events")
        return "oom_kill" in words[:-1] and words[words.index("oom_kill") + 1] != "0"

    def remove(self) -> None:
        """Remove it, once all processes in it have ended."""
        remove(str(self.path))


def is_group(path: Path) -> bool:
    """Whether a directory has the name and location of one of our groups."""
    try:
        mount, _ = _mount(OWN)
    except (NotDelegated, OSError):
        return False
    is_named = path.name.startswith(_PREFIX) and is_run_id(path.name.removeprefix(_PREFIX))
    return is_named and Path(os.path.realpath(path)).is_relative_to(mount)


def remove_group(path: Path) -> None:
    """Remove a group and its subgroups where no process is left; nothing else is removed."""
    for folder, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)  # noqa: PTH106 - the files that it shows need not be removed


def _mount(own: Path) -> tuple[Path, str]:
    """Return where cgroup v2 is mounted, and which group is mounted there."""
    for line in (own / "mountinfo").read_text("utf-8", "replace").splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            _, _, _, root, point, *_ = before.split()
            return Path(point), root
    msg = "cgroup v2 is not mounted on this machine"
    raise NotDelegated(msg)


def _own_group(own: Path) -> str:
    for line in (own / "cgroup").read_text("utf-8", "replace").splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::")
    msg = "this process is in no cgroup of v2"
    raise NotDelegated(msg)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text("ascii").split()
    except OSError:
        return []


def _is_writable(folder: Path) -> bool:
    # To move a process, this user must be able to write to the group above both groups.
    return os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK)


PROC = Path("/proc")


def limit_cpu(pid: int, seconds: float) -> None:
    """End a process when it has used a number of seconds of CPU time from now on.

    The system counts whole seconds: they are rounded up. First comes SIGXCPU, a second later
    SIGKILL. Each process that it starts has the same limit for itself.
    """
    soft = math.ceil(_cpu_seconds_of(pid) + seconds)
    _lower(pid, resource.RLIMIT_CPU, soft, soft + 1)


def limit_files(pid: int, count: int) -> None:
    """Limit the number of files that a process has open at a time."""
    _lower(pid, resource.RLIMIT_NOFILE, count, count)


def limit_address_space(pid: int, size_bytes: int, *, finally_so: bool) -> None:
    """Limit the memory that a process takes beyond what it has now.

    At the limit it gets `MemoryError`.

    Parameters
    ----------
    pid
        The process.
    size_bytes
        Address space, whether or not it is used.
    finally_so
        Whether the limit can never be raised again.
    """
    most = _address_space_of(pid) + size_bytes
    hard = most if finally_so else resource.prlimit(pid, resource.RLIMIT_AS)[1]
    _lower(pid, resource.RLIMIT_AS, most, hard)


def _lower(pid: int, which: int, soft: int, hard: int) -> None:
    """Set a limit, but not above the present hard limit."""
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
