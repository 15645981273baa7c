"""Background processes, as every process of the user sees them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal as signals
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from ..errors import ProcessExited, ProcessNotFound, ProcessNotReady
from ..files import read_json, write_file
from ..output.tables import Cell, Table
from ..printable import duration, printable
from ..processes.identity import ProcessIdentity, descendants
from ..processes.run_folders import is_leftover
from ..tracebacks import hides_own_frames
from ..validation import check_count, check_seconds
from .process_log import LogChunk, LogReader, Logs, read_log

HEADINGS = ("id", "name", "session", "pool", "pid", "status", "for", "command")

NUMBERS = frozenset({"pid", "for"})
"""The headings of columns that are aligned at the right."""

NO_PROCESSES = "no processes"

MAX_COMMAND = 60
"""Characters of a command in a table."""

ProcessState = Literal["running", "exited", "failed", "killed"]

STATUS_FILE = "status.json"
KILL_FILE = "killed"
INPUT_FILE = "input"

LOOK_SECONDS = 0.02
"""Seconds between two looks at a process of another owner."""

TERM_SECONDS = 0.02
"""Seconds after which a signal is sent again: bash drops one that comes between a fork and the
program that is executed."""

END_SECONDS = 10.0
"""Seconds after a kill in which a process must be gone."""

MAX_LINE_BYTES = 1 << 16
"""Longest beginning of a line in which a pattern is searched."""

LOG_END = 2000
"""Characters of a log that errors show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """What is published about a process.

    Attributes
    ----------
    id, name, command
        Its id, its name, and what it runs; the latter without secrets.
    pid
        Its process id.
    session, pool
        The session that started it, and its pool, if there is one.
    run_id, guardian
        Its run, and the process above it.
    state
        ``"running"``, ``"exited"`` (with 0), ``"failed"`` (with another status) or ``"killed"``.
    returncode
        Its exit status; 128 + N for signal N. None while it runs.
    started, ended
        Seconds since 1970.
    """

    id: str
    name: str
    command: str
    pid: int
    session: str
    pool: str | None
    run_id: str
    guardian: str
    owner: str
    state: ProcessState
    returncode: int | None
    started: float
    ended: float | None


def write_record(folder: Path, record: ProcessRecord) -> None:
    """Publish a record."""
    write_file(folder / STATUS_FILE, json.dumps(asdict(record)))


def read_record(folder: Path) -> ProcessRecord | None:
    """Read a record; None if it is gone, or of another version."""
    try:
        return ProcessRecord(**read_json(folder / STATUS_FILE))  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError):
        return None


class LocalProcess(Protocol):
    """A background process in the process that owns it."""

    changed: threading.Condition
    """Notified when it has written something, or has ended."""

    record: ProcessRecord
    """What is known of it."""

    owner_pid: int
    """The process that owns it; its forked children have it in their memory, but do not."""

    is_killed: bool
    """Somebody here has asked for its end."""

    def close_input(self) -> None:
        """Close its standard input."""


@hides_own_frames
class Process:
    """A background process of a session.

    Any session of any of this user's kernels may look at it, follow its log, wait for it, signal it
    and kill it.

    Parameters
    ----------
    folder
        Where it is published.
    local
        The process itself, where this process owns it.
    """

    def __init__(self, folder: Path, local: LocalProcess | None = None) -> None:
        self._folder = folder
        self._local = local
        record = local.record if local is not None and self._is_local else read_record(folder)
        if record is None:
            raise ProcessNotFound(folder.name)
        self._last = record

    def __reduce__(self) -> tuple[object, ...]:
        return Process, (self._folder,)  # any process of the user can look at it there

    @property
    def record(self) -> ProcessRecord:
        """What is known of it now."""
        if self._last.state != "running":
            return self._last
        is_lost = (
            not self._is_local and not self._owner.is_alive() and not self._guardian.is_alive()
        )
        found = read_record(self._folder)
        if found is not None:
            self._last = found
        elif self._is_local and self._local is not None:
            self._last = self._local.record
        if is_lost and self._last.state == "running":  # it has ended with its owner
            self._last = _lost(self._last)
        return self._last

    @property
    def _is_local(self) -> bool:
        return self._local is not None and self._local.owner_pid == os.getpid()

    @property
    def id(self) -> str:
        """Its id, unique among those of this user."""
        return self._last.id

    @property
    def name(self) -> str:
        """Its name."""
        return self._last.name

    @property
    def command(self) -> str:
        """What it runs, without secrets."""
        return self._last.command

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._last.pid

    @property
    def session_id(self) -> str:
        """The session that started it."""
        return self._last.session

    @property
    def pool(self) -> str | None:
        """The pool of that session, if it has one."""
        return self._last.pool

    @property
    def status(self) -> ProcessState:
        """``"running"``, ``"exited"`` (with 0), ``"failed"`` (with another) or ``"killed"``."""
        return self.record.state

    @property
    def is_running(self) -> bool:
        """Whether it runs."""
        return self.status == "running"

    @property
    def returncode(self) -> int | None:
        """Its exit status; 128 + N for signal N. None while it runs."""
        return self.record.returncode

    @property
    def started(self) -> datetime:
        """When it started."""
        return datetime.fromtimestamp(self._last.started, UTC)

    @property
    def ended(self) -> datetime | None:
        """When it ended; None while it runs."""
        ended = self.record.ended
        return None if ended is None else datetime.fromtimestamp(ended, UTC)

    def __repr__(self) -> str:
        record = self.record
        status = (
            record.state if record.returncode is None else f"{record.state} {record.returncode}"
        )
        return f"<Process {record.id} {record.name!r} of session {record.session!r}: {status}>"

    @property
    def is_here(self) -> bool:
        """Whether this process has started it."""
        return self._local is not None

    def as_row(self) -> tuple[str, ...]:
        """Return its row in a table under `HEADINGS`."""
        return tuple(cell.text for cell in self._cells())

    def _cells(self) -> tuple[Cell, ...]:
        record = self.record
        seconds = (time.time() if record.ended is None else record.ended) - record.started
        status = (
            record.state if record.returncode is None else f"{record.state} {record.returncode}"
        )
        command = printable(" ".join(record.command.split()), limit=MAX_COMMAND)
        began = datetime.fromtimestamp(record.started, UTC).astimezone()
        return (
            Cell(text=record.id),
            Cell(text=printable(record.name)),
            Cell(text=printable(record.session)),
            Cell(text=printable(record.pool or "")),
            Cell(text=str(record.pid)),
            Cell(text=status, state=record.state),
            Cell(text=duration(seconds), title=f"since {began:%Y-%m-%d %H:%M:%S}"),
            Cell(text=command, title=record.command),
        )

    # -- its log -------------------------------------------------------------------------------

    def logs(self, since: int = 0) -> Logs:
        """Return what it has written, as far as it is kept: the last MiB.

        Parameters
        ----------
        since
            The number of the first chunk: ``next`` of an earlier answer, to go on there.
        """
        return read_log(self._folder, check_count("since", since, 0))

    def follow(self, since: int = 0) -> Iterator[LogChunk]:
        """Yield what it has written and writes, until it has ended."""
        reader = LogReader(self._folder, check_count("since", since, 0))
        while True:
            is_over = not self.is_running
            chunks: tuple[LogChunk, ...] = ()

            def has_more() -> bool:
                nonlocal chunks
                chunks = chunks or reader.read().chunks
                return bool(chunks)

            self._await_change(has_more, None)
            yield from chunks
            if is_over and not chunks:
                return

    # -- waiting -------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; return its exit status.

        Raises
        ------
        ProcessNotReady
            It runs longer than that.
        """
        seconds = check_seconds("timeout", timeout, allow_zero=True)
        self._await_change(lambda: False, seconds)
        record = self.record
        if record.returncode is None:
            raise ProcessNotReady(self.id, "has not ended", seconds or 0.0)
        return record.returncode

    def wait_for_log(self, pattern: str, timeout: float | None = 10.0) -> str:
        """Wait until a line of its log matches a regular expression; return the line.

        What it has written already counts, on either stream.

        Raises
        ------
        ProcessNotReady
            It did not write that in time.
        ProcessExited
            It ended before.
        ValueError
            The pattern is no regular expression.
        """
        try:
            search = re.compile(pattern).search
        except re.error as error:
            msg = f"pattern {pattern!r} is no regular expression: {error}"
            raise ValueError(msg) from None

        reader = LogReader(self._folder)
        rest = {"stdout": b"", "stderr": b""}  # the beginnings of lines that have not ended

        def line() -> str | None:
            for chunk in reader.read().chunks:
                *lines, last = (rest[chunk.stream] + chunk.data).splitlines(keepends=True) or [b""]
                rest[chunk.stream] = b"" if last.endswith(b"\n") else last[-MAX_LINE_BYTES:]
                for found in (*lines, last):
                    text = found.decode("utf-8", "replace").rstrip("\r\n")
                    if search(text):
                        return text
            return None

        found: str = self._await(line, f"has not written {pattern!r}", timeout)
        return found

    def wait_for_port(
        self, port: int, timeout: float | None = 10.0, host: str = "127.0.0.1"
    ) -> None:
        """Wait until something accepts connections at a TCP port of this machine.

        Raises
        ------
        ProcessNotReady
            Nothing did in time.
        ProcessExited
            The process ended before.
        """
        number = check_count("port", port, 1, 65535)

        def is_open() -> bool | None:
            with contextlib.suppress(OSError), socket.create_connection((host, number), 0.5):
                return True
            return None

        self._await(is_open, f"does not listen at port {number}", timeout, polls=True)

    def _await(
        self,
        look: Callable[[], Any],
        what: str,
        timeout: float | None,
        *,
        polls: bool = False,
    ) -> Any:
        seconds = check_seconds("timeout", timeout, allow_zero=True)
        found = None

        def is_there() -> bool:
            nonlocal found
            found = look() if found is None else found  # it may be there to be seen only once
            return found is not None

        self._await_change(is_there, seconds, polls=polls)
        if found is not None or is_there():
            return found
        if self.is_running:
            raise ProcessNotReady(self.id, what, seconds or 0.0, self.logs().text[-LOG_END:])
        raise ProcessExited(self.id, what, self.returncode, self.logs().text[-LOG_END:])

    def _await_change(
        self, is_there: Callable[[], bool], seconds: float | None, *, polls: bool = False
    ) -> None:
        """Wait until something is there, the process has ended, or the time is over."""
        until = None if seconds is None else time.monotonic() + seconds
        while not is_there() and self.is_running:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return
            if self._local is None or not self._is_local or polls:
                time.sleep(LOOK_SECONDS if left is None else min(left, LOOK_SECONDS))
                continue
            with self._local.changed:
                if not is_there() and self.is_running:
                    self._local.changed.wait(left)

    # -- acting --------------------------------------------------------------------------------

    def send_input(self, data: str | bytes) -> None:
        """Write to its standard input.

        Raises
        ------
        BrokenPipeError
            It has closed its input, or has ended.
        """
        written = data.encode() if isinstance(data, str) else data
        try:
            fd = os.open(self._folder / INPUT_FILE, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            msg = f"process {self.id} has closed its input, or has ended"
            raise BrokenPipeError(error.errno, msg) from None
        os.set_blocking(fd, True)
        with open(fd, "wb") as file:  # noqa: PTH123
            file.write(written)

    def close_input(self) -> None:
        """Close its standard input: it reads the end of it, after what was sent.

        Raises
        ------
        RuntimeError
            Another process of this user has started it.
        """
        if self._local is None or not self._is_local:
            msg = f"only the kernel or script that started process {self.id} can close its input"
            raise RuntimeError(msg)
        self._local.close_input()

    def send_signal(self, signum: int) -> None:
        """Send a signal to it and all that it has started."""
        for process in self._tree():
            with contextlib.suppress(PermissionError, ProcessLookupError):
                process.signal(signum)

    def kill(self, signal: int = signals.SIGTERM, grace: float = 5.0) -> int | None:
        """End it and all that it has started; return its exit status when they are gone.

        Parameters
        ----------
        signal
            The signal to begin with.
        grace
            Seconds that it may take to end; then it is killed.
        """
        seconds = check_seconds("grace", grace, allow_zero=True) or 0.0
        if not self.is_running:
            return self.returncode
        if self._is_local and self._local is not None:
            self._local.is_killed = True
        with contextlib.suppress(OSError):  # its folder was removed, or the disk is full
            (self._folder / KILL_FILE).touch()
        until = time.monotonic() + seconds
        seen: set[ProcessIdentity] = set()
        while self.is_running and time.monotonic() < until and signal != signals.SIGKILL:
            tree = set(self._tree())
            for process in tree:
                with contextlib.suppress(PermissionError, ProcessLookupError):
                    if signal == signals.SIGTERM or process not in seen:
                        process.signal(signal)
                        process.signal(signals.SIGCONT)
            seen |= tree
            if not tree:
                break
            time.sleep(min(TERM_SECONDS, max(0.0, until - time.monotonic())))
        with contextlib.suppress(PermissionError, ProcessLookupError):
            self._guardian.signal(signals.SIGUSR1)  # verifies that nothing is left
            self._guardian.signal(signals.SIGCONT)
        until = time.monotonic() + END_SECONDS
        while (self.is_running or self._guardian.is_alive()) and time.monotonic() < until:
            time.sleep(0.002)
        return self.returncode

    @property
    def _owner(self) -> ProcessIdentity:
        return ProcessIdentity.parse(self._last.owner)

    @property
    def _guardian(self) -> ProcessIdentity:
        return ProcessIdentity.parse(self._last.guardian)

    def _tree(self) -> list[ProcessIdentity]:
        if not self._guardian.is_alive():
            return []
        return [
            ProcessIdentity(status.pid, status.start_time)
            for status in descendants(self._guardian.pid)
            if not status.is_dead
        ]


def _lost(record: ProcessRecord) -> ProcessRecord:
    values = {**asdict(record), "state": "killed", "ended": time.time()}
    return ProcessRecord(**{**values, "returncode": 128 + signals.SIGKILL})


def signal_number(text: str) -> int:
    """Return the number of a signal, by its number or name.

    Raises
    ------
    ValueError
        There is none.
    """
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    try:
        return signals.Signals(int(text)) if text.isdecimal() else signals.Signals[name]
    except (KeyError, ValueError):
        msg = f"there is no signal {text!r}; name one such as TERM, INT or KILL"
        raise ValueError(msg) from None


def published(directories: list[Path]) -> list[Path]:
    """Return the folders of all processes that are published in some runtime directories."""
    return sorted(
        file.parent
        for directory in directories
        for file in directory.glob(f"*/process-*/*/{STATUS_FILE}")
        if not is_leftover(file.parent.parent)
    )


def table_of(processes: Iterable[Process]) -> Table:
    """Return processes as a table."""
    rows = [process._cells() for process in processes]  # noqa: SLF001 - of the class above
    return Table(headings=HEADINGS, rows=rows, numbers=NUMBERS)
