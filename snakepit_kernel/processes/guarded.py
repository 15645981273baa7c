"""A process under guard, as its owner holds it."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

from ..errors import StartFailed
from ..ids import RUN_ID_OPTION, run_number
from . import guardian
from .identity import ProcessIdentity
from .place import sees_itself
from .report import EndReport
from .tags import KEEP_VARIABLE, mark_of
from .waiting import exit_descriptor, readable, to_its_end

logger = logging.getLogger(__name__)

START_PATIENCE = 30.0
"""Seconds that a guardian may take to report that the kernel runs."""

END_PATIENCE = 10.0
"""Seconds after the grace in which a guardian says that all are gone, or who does not die."""


class GuardedProcess:
    """A command that runs under a guardian of its own.

    The owner holds one end of a channel. When the owner closes it or dies, the guardian ends
    everything that the command ever started. Nothing here is bound to an event loop.

    Attributes
    ----------
    run_id
        The run that the process and all its descendants belong to.
    identity
        The process itself, once it has started; not the guardian.
    status
        Its exit status as in :mod:`subprocess`, or None while it runs.
    report
        What ending the run took, filled in as it ends.
    """

    def __init__(self, run_id: str, popen: subprocess.Popen[bytes], channel: socket.socket) -> None:
        self.run_id = run_id
        self.identity: ProcessIdentity | None = None
        self.status: int | None = None
        self.report = EndReport()
        self._popen = popen
        self._channel = channel
        self._inbox = b""
        self._start_errno: int | None = None
        self._exit_fd: int | None = None
        self._lock = threading.Lock()
        guardian_identity = ProcessIdentity.of(popen.pid)
        self.guardian = guardian_identity or ProcessIdentity(popen.pid, 0)
        self._guardian_exit_fd = exit_descriptor(self.guardian)
        _alive.add(self)

    # -- starting ----------------------------------------------------------------------------

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        run_id: str,
        grace: float,
        env: Mapping[str, str],
        leftovers: Sequence[str | Path] = (),
        report_file: str | Path | None = None,
        pass_fds: Sequence[int] = (),
        independent: bool = False,
        **popen_arguments: Any,
    ) -> GuardedProcess:
        """Start a command under a new guardian.

        Parameters
        ----------
        command
            Program and arguments.
        run_id
            Run id of the new process; the caller put it into ``env``.
        grace
            Seconds between SIGTERM and SIGKILL when the guardian ends the run by itself.
        env
            The whole environment. ``SNAKEPIT_KEEP`` is left out: a run itself is never kept.
        leftovers
            Files and directories that go with the run; the guardian removes them when the owner
            is dead.
        report_file
            Where the guardian writes what it had to end, when the owner is dead.
        pass_fds
            File descriptors that the command inherits under the same numbers.
        independent
            The run outlives its owner.
        popen_arguments
            Anything else that :class:`subprocess.Popen` knows: ``cwd``, ``stdout``, ``umask`` …

        Raises
        ------
        StartFailed
            The command could not be executed. Nothing is left running.
        """
        process = cls._spawn(
            command,
            run_id=run_id,
            grace=grace,
            env=env,
            leftovers=leftovers,
            report_file=report_file,
            pass_fds=pass_fds,
            independent=independent,
            popen_arguments=popen_arguments,
        )
        try:
            await process._confirm_start(command[0])  # noqa: SLF001 - of this very class
        except BaseException:
            await to_its_end(process.end(0.0))
            raise
        return process

    @classmethod
    def _spawn(
        cls,
        command: Sequence[str],
        *,
        run_id: str,
        grace: float,
        env: Mapping[str, str],
        leftovers: Sequence[str | Path],
        report_file: str | Path | None,
        pass_fds: Sequence[int],
        independent: bool,
        popen_arguments: dict[str, Any],
    ) -> GuardedProcess:
        if sys.platform != "linux":
            cause = "process clean-up by a guardian needs Linux so far"
            raise StartFailed(command[0], cause)
        if not sees_itself():
            cause = "/proc does not show this PID namespace; mount it anew (unshare --mount-proc)"
            raise StartFailed(command[0], cause)
        ours, theirs = socket.socketpair()
        if theirs.fileno() <= 2:  # an owner without standard streams; Popen fills these numbers
            low = theirs
            theirs = socket.socket(fileno=fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 3))
            low.close()
        owner = ProcessIdentity.of(os.getpid())
        arguments = [
            *guardian_command(),
            f"{RUN_ID_OPTION}{run_id}",
            f"--mark={mark_of(run_number(run_id))}",
            f"--owner={owner}",
            f"--channel={theirs.fileno()}",
            f"--grace={grace}",
            *(f"--pass-fd={descriptor}" for descriptor in pass_fds),
            *(f"--leftover={path}" for path in leftovers),
            *([f"--report={report_file}"] if report_file else []),
            *(["--independent"] if independent else []),
            "--",
            *command,
        ]
        if popen_arguments.get("stdin") is None:  # the owner's own is never meant
            popen_arguments["stdin"] = subprocess.DEVNULL
        try:
            popen = subprocess.Popen(
                arguments,
                env={name: value for name, value in env.items() if name != KEEP_VARIABLE},
                pass_fds=(*pass_fds, theirs.fileno()),
                start_new_session=True,
                **popen_arguments,
            )
        except OSError as error:
            ours.close()
            raise StartFailed(command[0], _explain(error)) from error
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return cls(run_id, popen, ours)

    async def _confirm_start(self, program: str) -> None:
        while self.identity is None and self._start_errno is None:
            if self._channel.fileno() < 0:
                raise StartFailed(program, "its guardian died while it started")
            if not await readable(self._channel.fileno(), timeout=START_PATIENCE):
                cause = f"its guardian did not answer within {START_PATIENCE:.0f} s"
                raise StartFailed(program, cause)
            self._listen()
        if self._start_errno is not None:
            cause = os.strerror(self._start_errno)
            if self._start_errno == errno.ENOENT:
                cause += "; is the interpreter of this kernelspec still installed?"
            raise StartFailed(program, cause)
        assert self.identity is not None
        self._exit_fd = exit_descriptor(self.identity)

    # -- looking -----------------------------------------------------------------------------

    def poll(self) -> int | None:
        """Return the exit status, or None while the process runs."""
        self._listen()
        if self.status is None and self.identity is not None and not self.identity.is_alive():
            self._wake_guardian()  # it says how the process ended, unless somebody has stopped it
        return self.status

    @property
    def is_gone(self) -> bool:
        """Whether the guardian has ended, and with it the run."""
        return self._popen.poll() is not None

    async def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the process to end; return its exit status, or None after the timeout."""
        if (
            self.poll() is None
            and self._exit_fd is not None
            and not await readable(self._exit_fd, timeout=timeout)
        ):
            return None
        # The guardian reaps the process and says how it ended; that is a moment later.
        while self.poll() is None and self._channel.fileno() >= 0:
            if not await readable(self._channel.fileno(), timeout=1.0):
                break
        return self.status

    def exit_descriptor(self) -> int:
        """Return a new file descriptor that is readable when the process has ended.

        The caller closes it.

        Raises
        ------
        ProcessLookupError
            The process has ended already.
        """
        if self._exit_fd is None or self.poll() is not None:
            msg = "the process has ended"
            raise ProcessLookupError(msg)
        return os.dup(self._exit_fd)

    # -- ending ------------------------------------------------------------------------------

    def send_signal(self, signum: int) -> None:
        """Send a signal to the process alone; nothing happens when it has ended."""
        if self.identity is not None and self.poll() is None:
            self.identity.signal(signum)

    def request_end(self, grace: float) -> None:
        """Ask the guardian to end the run; return at once."""
        self._send(f"end\t{grace}\n")
        self._wake_guardian()

    def _wake_guardian(self) -> None:
        """Continue the guardian, should somebody have stopped it."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGCONT)

    async def end(self, grace: float) -> EndReport:
        """End everything the process ever started; return when that is verified.

        Parameters
        ----------
        grace
            Seconds between SIGTERM and SIGKILL.

        Returns
        -------
        EndReport
            With ``verified`` false when the guardian was killed, or when ``survivors`` are named:
            processes that do not die. The guardian goes on trying.
        """
        self._listen()
        self.report.survivors.clear()  # of an earlier try
        self.request_end(grace)
        deadline = time.monotonic() + grace + END_PATIENCE
        while (exit_fd := self._guardian_exit_fd) is not None and not self.is_gone:
            self._listen()
            if self.report.survivors:
                break
            channel = [self._channel.fileno()] if self._channel.fileno() >= 0 else []
            if not await readable(exit_fd, *channel, timeout=max(0.0, deadline - time.monotonic())):
                break
        return self._conclude()

    def _conclude(self) -> EndReport:
        self._listen()
        if self.is_gone:
            with self._lock:
                self._close()
        return self.report

    def _close(self) -> None:
        self._channel.close()
        for descriptor in (self._exit_fd, self._guardian_exit_fd):
            if descriptor is not None:
                os.close(descriptor)
        self._exit_fd = self._guardian_exit_fd = None

    # -- the channel -------------------------------------------------------------------------

    def _send(self, line: str) -> None:
        try:
            self._channel.send(line.encode())
        except OSError:
            logger.debug("the guardian of run %s has gone", self.run_id)

    def _listen(self) -> None:
        """Take in what the guardian has said so far."""
        with self._lock:
            while self._channel.fileno() >= 0:
                try:
                    received = self._channel.recv(65536)
                except BlockingIOError:
                    return
                except OSError:
                    received = b""
                if not received:
                    self._lose_guardian()
                    return
                *lines, self._inbox = (self._inbox + received).split(b"\n")
                for line in lines:
                    self._take(line.decode("utf-8", "replace").split("\t"))

    def _take(self, words: list[str]) -> None:
        match words:
            case ["started", pid, start_time]:
                self.identity = ProcessIdentity(int(pid), int(start_time))
            case ["failed", number]:
                self._start_errno = int(number)
            case ["exited", status]:
                self.status = int(status)
            case _ if not self.report.take(words):
                logger.warning("unknown word from the guardian of run %s", self.run_id)

    def _lose_guardian(self) -> None:
        """Note that the channel closed: the run is over, or its guardian was killed."""
        self._channel.close()
        if self.status is None and self.identity is not None:
            self.status = -int(signal.SIGKILL)  # the kernel's parent-death signal


def guardian_command() -> list[str]:
    """Return the command that starts a guardian, but for its options.

    It is imported, and not executed as a script, because only a module is kept compiled: to
    compile it each time costs 10 ms and 1 MiB. A stand-in takes the place of the package, whose
    facade imports `typing`: another MiB.
    """
    package = __name__.partition(".")[0]
    code = (
        "import sys; "
        f"package = sys.modules[{package!r}] = type(sys)({package!r}); "
        f"package.__path__ = [{str(Path(guardian.__file__).parents[1])!r}]; "
        f"from {guardian.__name__} import main; sys.exit(main(sys.argv[2:]))"
    )
    return [sys.executable, "-I", "-S", "-c", code, guardian.__file__]  # the last for its reader


def _explain(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{text}: {error.filename}" if error.filename else text


_alive: WeakSet[GuardedProcess] = WeakSet()


def _release_in_child() -> None:
    """Drop every channel in a forked child: only the owner's end may keep a guardian waiting."""
    for process in list(_alive):
        process._channel.close()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_release_in_child)
