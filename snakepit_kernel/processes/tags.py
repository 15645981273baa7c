"""Tags that identify the run of a process, readable from outside of it.

The run id is in the environment and on the command line. A child with another environment still
carries the *mark*: the run id as a number, in its soft limit RLIMIT_RSS, which every child inherits
and which Linux ignores. A mark is 63 bits: a leading 100, or 101 for a process that is deliberately
kept (see `keep`), and the 60 bits of the run id.

The guardian loads this module, so it imports next to nothing.
"""

from __future__ import annotations

import os

from .identity import ProcessIdentity, is_hidden, read_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

KEEP_VARIABLE = "SNAKEPIT_KEEP"
"""Environment variable that exempts a process, and what it starts, from the end of its run."""

_KEEP_ENTRY = f"{KEEP_VARIABLE}=1".encode()

_SHIFT = 60
_RUN = 0b100
_KEPT = 0b101


def mark_of(number: int) -> int:
    """Return the mark of a run, from the 60 bits of its id."""
    return _RUN << _SHIFT | number


def number_of(mark: int) -> int | None:
    """Return the 60 bits of the run id in a resource limit, or None if it is not a mark."""
    return mark & ((1 << _SHIFT) - 1) if mark >> _SHIFT in (_RUN, _KEPT) else None


def kept(mark: int) -> int:
    """Return a run's mark for a process that is to be kept."""
    return mark | (_RUN ^ _KEPT) << _SHIFT


def read_mark(pid: int) -> int:
    """Read the soft limit that carries the mark of a process; 0 when it is infinite or hidden.

    The system call reads it of every process of the same user, also of one that `/proc` hides.
    """
    import resource

    try:
        return max(0, resource.prlimit(pid, resource.RLIMIT_RSS)[0])  # -1 is infinite
    except (OSError, ValueError):
        pass  # another user's process, which /proc may show, or the call is not allowed here
    soft = _read(f"/proc/{pid}/limits").partition(b"Max resident set")[2].split(None, 1)[:1]
    return int(soft[0]) if soft and soft[0].isdigit() else 0


def read_environment(pid: int) -> list[bytes]:
    """Read the environment that a process was executed with; empty when it is hidden."""
    return _read(f"/proc/{pid}/environ").split(b"\0")


def read_arguments(pid: int) -> list[bytes]:
    """Read the command line of a process; empty when it is hidden.

    A process that has set its title, as a kernel forked from a template does, shows its arguments
    between spaces.
    """
    arguments = _read(f"/proc/{pid}/cmdline").rstrip(b"\0").split(b"\0")
    return arguments if len(arguments) > 1 else arguments[0].split(b" ")


class MarkedProcess(ProcessIdentity):
    """A process of this user that `/proc` hides, identified by its pid and its mark."""

    __slots__ = ("mark",)

    def __init__(self, pid: int, mark: int) -> None:
        super().__init__(pid, 0)  # its start time is hidden
        self.mark = mark

    def is_seen(self) -> bool:
        """Whether a process with this pid and mark exists."""
        return read_mark(self.pid) == self.mark

    def is_alive(self) -> bool:
        """Whether that process runs; a zombie does not."""
        status = read_status(self.pid)
        alive = is_hidden(self.pid) if status is None else not status.is_dead
        return alive and self.is_seen()


def is_kept(pid: int) -> bool:
    """Whether a process is to outlive its run."""
    return says_kept(read_mark(pid), read_environment(pid))


def says_kept(mark: int, environment: list[bytes]) -> bool:
    """Whether the tags of a process say that it is to outlive its run."""
    return mark >> _SHIFT == _KEPT or _KEEP_ENTRY in environment


def is_guarded(arguments: Sequence[str]) -> bool:
    """Whether this process was started as a run by a provisioner.

    The run id in the environment alone does not prove that: a client that runs a kernel's command
    by itself may be part of a run.

    Parameters
    ----------
    arguments
        The command line of this process.
    """
    from ..ids import RUN_ID_OPTION, own_run_id

    run_id = own_run_id()
    return run_id is not None and (RUN_ID_OPTION + run_id in arguments or parent_is_guardian())


def parent_is_guardian() -> bool:
    """Whether this process is the child of the guardian of its run."""
    from ..ids import RUN_ID_OPTION, own_run_id

    above = read_arguments(os.getppid())
    return (
        b"--" in above and f"{RUN_ID_OPTION}{own_run_id()}".encode() in above[: above.index(b"--")]
    )


def set_mark(mark: int) -> int | None:
    """Set the mark of this process; return the limit before, or None where that is not allowed."""
    import resource

    try:
        before, hard = resource.getrlimit(resource.RLIMIT_RSS)
        resource.setrlimit(resource.RLIMIT_RSS, (mark, hard))
    except (OSError, ValueError):
        return None
    return before


def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        content = b""
        while part := os.read(descriptor, 65536):
            content += part
    except OSError:
        return b""  # it ended while we read
    finally:
        os.close(descriptor)
    return content
