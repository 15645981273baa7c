"""Identities of processes: pid and start time, and signals that reach no other process.

A pid alone names a process only until it is recycled. An identity is a pid and the start time of
the process; a signal goes through a pidfd that was opened first and verified afterwards, so it
reaches that process or none. Where there are no pidfds, the process is verified right before the
signal: a pid that is recycled in those microseconds would be hit.

A process that cannot be read may still exist: `/proc` may hide it (``hidepid``), even from its own
user if it is not dumpable. A hidden process may be the one that is meant: it counts as alive, and
is not signalled.

The guardian loads this module, so it imports next to nothing.
"""

from __future__ import annotations

import errno
import os
import select

from ..printable import printable
from . import pidfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

SIGKILL = 9

MAX_COMMAND_LINE = 4096
"""Bytes of a command line that are read."""
MAX_PID = 2**31 - 1


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
        """Return the identity of a living process, or None; also when `/proc` hides it."""
        status = read_status(pid)
        return None if status is None or status.is_dead else cls(pid, status.start_time)

    @classmethod
    def parse(cls, text: str) -> ProcessIdentity:
        """Parse the form that ``str`` gives, ``PID:START``.

        Raises
        ------
        ValueError
            The text has another form.
        """
        pid, _, start_time = text.partition(":")
        if not 0 < int(pid) <= MAX_PID:  # system calls give other numbers special meanings
            msg = f"{pid} is no process id"
            raise ValueError(msg)
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
        """Whether this very process runs, or a hidden one that may be it; a zombie does not run."""
        status = read_status(self.pid)
        if status is None:
            return is_hidden(self.pid)
        return self._matches(status) and not status.is_dead

    def _matches(self, status: ProcessStatus) -> bool:
        return status.start_time == self.start_time

    def is_stopped(self) -> bool:
        """Whether a signal has stopped this very process."""
        status = read_status(self.pid)
        return status is not None and self._matches(status) and status.state == "T"

    def has_lost_its_main_thread(self) -> bool:
        """Whether the main thread of this very process has ended while others still run."""
        status = read_status(self.pid)
        if status is None or not self._matches(status):
            return False
        return status.state == "Z" and not status.is_dead

    def is_seen(self) -> bool:
        """Whether this very process certainly exists, if only as a zombie."""
        status = read_status(self.pid)
        return status is not None and self._matches(status)

    def open(self) -> int | None:
        """Open a pidfd for this very process, or return None when it is gone.

        The file descriptor becomes readable when the process ends. The caller closes it. Use it for
        waiting only: where `/proc` hides the process, it may refer to another one with its pid.

        Raises
        ------
        OSError
            There are no pidfds here (`pidfd.is_possible`).
        """
        try:
            descriptor = pidfd.open_pidfd(self.pid)
        except ProcessLookupError:
            return None
        is_it = False
        try:
            is_it = self.is_seen() or is_hidden(self.pid)
            return descriptor if is_it else None
        finally:
            if not is_it:  # or no other descriptor is left to look with
                os.close(descriptor)

    def signal(self, signum: int) -> bool:
        """Send a signal to this very process; return False if it is gone.

        Raises
        ------
        PermissionError
            It belongs to another user, or `/proc` hides whether it is this one.
        """
        if not pidfd.is_possible():
            return self._signal_by_pid(signum)
        try:
            descriptor = pidfd.open_pidfd(self.pid)
        except ProcessLookupError:
            return False
        try:
            self._verify()
            pidfd.send_signal(descriptor, signum)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def _signal_by_pid(self, signum: int) -> bool:
        try:
            self._verify()
            os.kill(self.pid, signum)
        except ProcessLookupError:
            return False
        return True

    def _verify(self) -> None:
        if self.is_seen():
            return
        if is_hidden(self.pid):
            raise PermissionError(errno.EPERM, f"/proc hides whether process {self.pid} is meant")
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


class ProcessStatus:
    """The fields of ``/proc/PID/stat`` that are used here."""

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

        The state is that of the main thread: a process whose main thread has ended while others
        run has the same one.
        """
        return self.state in "ZX" and self.threads <= 1


def read_status(pid: int) -> ProcessStatus | None:
    """Read the status of a process; None when there is none of that pid, or `is_hidden`."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - no pathlib in the guardian
            content = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # gone, or another user's on a machine that hides those (hidepid)
    # The command, in parentheses, may hold spaces and parentheses itself.
    fields = content[content.rindex(b")") + 2 :].split()
    state, parent, threads, start_time = fields[0], fields[1], fields[17], fields[19]
    return ProcessStatus(pid, int(parent), state.decode(), int(start_time), int(threads))


def is_hidden(pid: int) -> bool:
    """Whether there is a living process of that pid whose status this user may not read.

    It need not be the wanted process: a pid may have been recycled.
    """
    # Read between two checks that it exists: it may have ended meanwhile, without being hidden.
    return _exists(pid) and read_status(pid) is None and not _has_ended(pid)


def _exists(pid: int) -> bool:
    if pid <= 0:  # that would be a group of processes
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True


def _has_ended(pid: int) -> bool:
    """Whether there is no process of a pid, or only a zombie, which may be hidden as well."""
    if not pidfd.is_possible():
        return not _exists(pid)
    try:
        descriptor = pidfd.open_pidfd(pid)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # the id of a thread
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(descriptor)


def read_command(pid: int) -> str:
    """Read the command line of a process, safe to display, or ``?`` when it is hidden.

    It is on one line; ``***`` replaces what looks like a secret.
    """
    return shown_command(read_command_line(pid))


def read_command_line(pid: int) -> bytes:
    """Read the beginning of the raw command line of a process; empty when it is hidden."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
            return file.read(MAX_COMMAND_LINE).rstrip(b"\0")
    except OSError:
        return b""


def shown_command(line: bytes) -> str:
    """Return a command line, which may hold secrets, in a form that is safe to display."""
    program, *arguments = [word.decode("utf-8", "replace") for word in line.split(b"\0")]
    try:  # imported here: the guardian needs it only at the end, and mostly not even then
        from ..redaction import redacted_command
    except (ImportError, OSError, MemoryError):  # it cannot be loaded at this moment
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
        Result of `all_children`, to be shared when many processes are looked up.
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
    return _read_number(pid, b"TracerPid:") or 0


def read_user(pid: int) -> int | None:
    """Return the id of the user that started a process, or None when it cannot be read.

    That is the real user id: a set-uid program has the rights of a user who did not start it.
    """
    return _read_number(pid, b"\nUid:")


def _read_number(pid: int, name: bytes) -> int | None:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123
            content = file.read()
    except OSError:
        return None
    return int(content.partition(name)[2].split(None, 1)[0])


def boot_id() -> str:
    """Return the id of this boot of the machine; start times compare within one boot only."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123
        return file.read().strip()
