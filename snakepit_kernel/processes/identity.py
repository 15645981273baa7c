"""Who a process is, and how to signal that one and no other.

A pid alone names a process only until it is recycled. An identity is a pid and the moment
the process started; a signal goes through a pidfd that was opened first and verified afterwards,
so it reaches that process or none. Where there are no pidfds, the process is verified in the moment
before the signal: a pid that is recycled in those microseconds would be hit.

The guardian loads this module, so it imports next to nothing.
"""

from __future__ import annotations

import os

from ..printable import printable
from . import pidfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

SIGKILL = 9

MAX_COMMAND_LINE = 4096
"""Bytes of a command line that are read."""


class ProcessIdentity:
    """A process: its pid and its start time.

    Parameters
    ----------
    pid
        Process id.
    start_time
        Field 22 of ``/proc/PID/stat``: clock ticks since the machine started.
    """

    __slots__ = ("pid", "start_time")

    def __init__(self, pid: int, start_time: int) -> None:
        self.pid = pid
        self.start_time = start_time

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Return the identity of a living process, or None."""
        status = read_status(pid)
        return None if status is None or status.is_dead else cls(pid, status.start_time)

    @classmethod
    def parse(cls, text: str) -> ProcessIdentity:
        """Read the form that ``str`` gives, ``PID:START``."""
        pid, _, start_time = text.partition(":")
        return cls(int(pid), int(start_time))

    def __str__(self) -> str:
        return f"{self.pid}:{self.start_time}"

    def __repr__(self) -> str:
        return f"ProcessIdentity(pid={self.pid}, start_time={self.start_time})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ProcessIdentity):
            return NotImplemented
        return self.pid == other.pid and self.start_time == other.start_time

    def __hash__(self) -> int:
        return hash((self.pid, self.start_time))

    def is_alive(self) -> bool:
        """Whether this very process runs. A zombie does not."""
        status = read_status(self.pid)
        return status is not None and status.start_time == self.start_time and not status.is_dead

    def open(self) -> int | None:
        """Open a pidfd for this very process, or return None when it is gone.

        The file descriptor becomes readable when the process ends. The caller closes it.

        Raises
        ------
        OSError
            There are no pidfds here (`pidfd.is_possible`).
        """
        try:
            descriptor = pidfd.open_pidfd(self.pid)
        except ProcessLookupError:
            return None
        status = read_status(self.pid)
        if status is None or status.start_time != self.start_time:
            os.close(descriptor)
            return None
        return descriptor

    def signal(self, signum: int) -> bool:
        """Send a signal to this very process; say whether there was one to receive it.

        Raises
        ------
        PermissionError
            It belongs to another user.
        """
        if not pidfd.is_possible():
            return self._signal_by_pid(signum)
        descriptor = self.open()
        if descriptor is None:
            return False
        try:
            pidfd.send_signal(descriptor, signum)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def _signal_by_pid(self, signum: int) -> bool:
        if not self.is_alive():
            return False
        try:
            os.kill(self.pid, signum)
        except ProcessLookupError:
            return False
        return True


class ProcessStatus:
    """What ``/proc/PID/stat`` says of a process."""

    __slots__ = ("parent", "pid", "start_time", "state", "threads")

    def __init__(self, pid: int, parent: int, state: str, start_time: int, threads: int) -> None:
        self.pid = pid
        self.parent = parent
        self.state = state
        self.start_time = start_time
        self.threads = threads

    @property
    def is_dead(self) -> bool:
        """Whether it is a zombie, or about to vanish.

        The state is that of the first thread: one that has ended before others looks the same.
        """
        return self.state in "ZX" and self.threads <= 1


def read_status(pid: int) -> ProcessStatus | None:
    """Read the status of a process, or None when there is none of that pid."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - no pathlib in the guardian
            content = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # gone, or another user's on a machine that hides those (hidepid)
    # The command, in parentheses, may hold spaces and parentheses itself.
    fields = content[content.rindex(b")") + 2 :].split()
    state, parent, threads, start_time = fields[0], fields[1], fields[17], fields[19]
    return ProcessStatus(pid, int(parent), state.decode(), int(start_time), int(threads))


def read_command(pid: int) -> str:
    """Read the command line of a process as people may see it, or ``?`` when it is hidden.

    It is on one line; in the place of what looks like a secret stands ``***``.
    """
    return shown_command(read_command_line(pid))


def read_command_line(pid: int) -> bytes:
    """Read the begin of the command line of a process as it is; nothing when it is hidden."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
            return file.read(MAX_COMMAND_LINE).rstrip(b"\0")
    except OSError:
        return b""


def shown_command(line: bytes) -> str:
    """Return a command line, which may hold secrets, as people may see it."""
    program, *arguments = [word.decode("utf-8", "replace") for word in line.split(b"\0")]
    try:  # here, because the guardian needs it at the end only, and mostly not even then
        from ..redaction import redacted_command
    except (ImportError, OSError, MemoryError):  # it cannot be loaded in this moment
        text = " ".join([program, *(["…"] if arguments else [])])
    else:
        text = redacted_command([program, *arguments])
    return printable(text) or "?"


def all_statuses() -> Iterator[ProcessStatus]:
    """Read the status of every process on the machine."""
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            status = read_status(int(name))
            if status is not None:
                yield status


def all_children() -> dict[int, list[ProcessStatus]]:
    """Read the status of every process on the machine, by the pid of its parent."""
    children: dict[int, list[ProcessStatus]] = {}
    for status in all_statuses():
        children.setdefault(status.parent, []).append(status)
    return children


def living_descendants(
    root: int, children: dict[int, list[ProcessStatus]] | None = None
) -> list[ProcessStatus]:
    """Return the status of every living process below one process, parents before children."""
    return [status for status in descendants(root, children) if not status.is_dead]


def descendants(
    root: int, children: dict[int, list[ProcessStatus]] | None = None
) -> list[ProcessStatus]:
    """Return the status of every process below one process, zombies too, parents before children.

    Parameters
    ----------
    root
        Its pid.
    children
        What `all_children` gave, for who asks about many processes.
    """
    children = all_children() if children is None else children
    found: list[ProcessStatus] = []
    level = children.get(root, [])
    while level:
        found.extend(level)
        level = [child for status in level for child in children.get(status.pid, ())]
    return found


def read_tracer(pid: int) -> int:
    """Return the pid of the process that traces one, or 0."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123
            content = file.read()
    except OSError:
        return 0
    return int(content.partition(b"TracerPid:")[2].split(None, 1)[0])


def boot_id() -> str:
    """Return the id of this boot of the machine; start times compare within one boot only."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123
        return file.read().strip()
