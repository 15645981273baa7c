"""The owner's handle on a guarded process: starting it, waiting for it, ending it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, NamedTuple, TypeGuard
from weakref import WeakSet

from ..errors import StartFailed
from ..locks import Lock
from ..loggers import get_logger
from .bare_interpreter import bare_command
from .end_report import EndReport
from .identity import ProcessIdentity, read_status
from .launch_spec import LaunchSpec
from .pid_scope import sees_itself
from .template import (
    CannotFork,
    Template,
    TemplateKind,
    discard,
    inherited_descriptors,
    program_template,
    refuse_preload,
    template_for,
)
from .waiting import exit_descriptor, readable, run_shielded

logger = get_logger(__name__)

START_PATIENCE = 30.0
"""Seconds that a guardian may take to report that the kernel runs."""

TEMPLATE_PATIENCE = 30.0
"""Seconds that a template may take to fork a guardian, its imports included; then the template is
ended, and the process is executed."""

STOP_INTERVAL = 0.5
"""Seconds of silence after which we check whether a signal has stopped the template or guardian."""

FORK_ATTEMPTS = 4
"""Templates that may turn out to be unfit, one after the other, before a process is executed."""

ASSIGN_PATIENCE = 10.0
"""Seconds that a standby kernel may take to apply its assignment."""

ASSIGN_INTERVAL = 0.001
"""Seconds between attempts to send the rest of a long line to a guardian that is still reading."""

END_PATIENCE = 10.0
"""Seconds after the grace in which a guardian reports that all are gone, or names survivors."""


TOO_MANY_PROCESSES = (
    "a limit on the number of processes is reached, the user's (ulimit -u) or the container's "
    "(pids.max)"
)


class Refusal(NamedTuple):
    """Why a template did not fork.

    Attributes
    ----------
    is_stale
        A module that it has imported has changed: a new template can fork.
    module
        The module that made it unfit, if that was one of those to preload.
    reason
        Text for people.
    """

    is_stale: bool
    module: str
    reason: str


class _Precondition:
    """Work that must be done once before a command runs, whether it is forked or executed."""

    def __init__(self, work: Callable[[], Awaitable[object]] | None) -> None:
        self._work = work

    async def fulfil(self) -> None:
        """Do the work, unless that has been done."""
        work, self._work = self._work, None
        if work is not None:
            await work()


class GuardedProcess:
    """A command that runs under its own guardian.

    The owner holds one end of a channel. When the owner closes it or dies, the guardian ends
    everything that the command ever started. Nothing here is bound to an event loop.

    Attributes
    ----------
    run_id
        The run that the process and all its descendants belong to.
    identity
        The process itself, once it has started.
    guardian
        The guardian, once it is known.
    is_ready
        The process has reported that it accepts requests.
    not_forked_because
        Why it was executed and not forked from a template; None if it was forked.
    template
        The template that it was forked from.
    status
        Its exit status as in :mod:`subprocess`, or None while it runs.
    report
        Report of its end, filled in as it ends.
    """

    def __init__(
        self, run_id: str, channel: socket.socket, popen: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.run_id = run_id
        self.identity: ProcessIdentity | None = None
        self.guardian: ProcessIdentity | None = None
        self.status: int | None = None
        self.is_ready = False
        self.not_forked_because: str | None = None
        self.template: Template | None = None
        self.report = EndReport()
        self._popen = popen  # None for a guardian forked by a template: it is not our child
        self._channel = channel
        self._inbox = b""
        self._failure: tuple[int, str] | None = None
        self._refusal: Refusal | None = None
        self._exit_fd: int | None = None
        self._guardian_exit_fd: int | None = None
        self._gate: socket.socket | None = None
        self._lock = Lock()
        channel.setblocking(False)
        if popen is not None:
            identity = ProcessIdentity.of(popen.pid)
            self._set_guardian(identity or ProcessIdentity(popen.pid, 0))
        _alive.add(self)

    def _set_guardian(self, guardian: ProcessIdentity) -> None:
        self.guardian = guardian
        self._guardian_exit_fd = exit_descriptor(guardian)

    # -- starting ----------------------------------------------------------------------------

    @classmethod
    async def start(
        cls,
        spec: LaunchSpec,
        *,
        kind: TemplateKind | None = None,
        before: Callable[[], Awaitable[object]] | None = None,
    ) -> GuardedProcess:
        """Start a command under a new guardian: forked from a template if possible, else executed.

        Parameters
        ----------
        spec
            The command, and what its process inherits.
        kind
            Kind of its template, for a kernel that a template can fork; such a process reports when
            it is ready.
        before
            Is awaited once before the command runs anything, while the process is forked.

        Raises
        ------
        StartFailed
            The command could not be executed. Nothing is left running.
        """
        if sys.platform != "linux":
            cause = "process clean-up by a guardian needs Linux so far"
            raise StartFailed(spec.command[0], cause)
        if not sees_itself():
            cause = "/proc does not show this PID namespace; mount it again (unshare --mount-proc)"
            raise StartFailed(spec.command[0], cause)
        precondition = _Precondition(before)
        reason = "this kind of kernel has no template"
        if kind is not None or spec.is_program:
            try:
                return await cls._fork(spec, kind, precondition)
            except CannotFork as error:
                reason = str(error)
                logger.info("run %s starts by exec: %s", spec.run_id, reason)
        if spec.standby:
            raise StartFailed(spec.command[0], reason)
        await precondition.fulfil()
        process = cls._execute(spec, reports_ready=kind is not None)
        process.not_forked_because = reason
        return await process._checked_start(spec.command[0])  # noqa: SLF001 - of this very class

    @classmethod
    async def _fork(
        cls, spec: LaunchSpec, kind: TemplateKind | None, precondition: _Precondition
    ) -> GuardedProcess:
        """Fork it from a template, and from another one if that has become unfit meanwhile.

        Raises
        ------
        CannotFork
            Nothing was started.
        StartFailed
            The process could not be forked, and executing it would fail as well.
        """
        program = spec.command[0]
        refusal: Refusal | None = None
        for _ in range(FORK_ATTEMPTS):
            if kind is None:
                template = program_template()
            else:
                template = template_for(kind, env=spec.env, cwd=spec.cwd)
            with inherited_descriptors(spec) as descriptors, contextlib.ExitStack() as stack:
                ours, theirs = socket.socketpair()
                process = cls(spec.run_id, ours)
                stack.enter_context(theirs)
                try:
                    process._gate, gate = socket.socketpair()
                    stack.enter_context(gate)
                    template.fork(spec, theirs, gate, descriptors)
                except BaseException:
                    process._close()
                    raise
            await process._checked_start(program, template, precondition)
            refusal = process._refusal
            if refusal is None and process.guardian is not None:
                process.template = template
                return process
            process._close()
            reason = f"its template ended{template.last_error_line()}"
            discard(template)
            if refusal is None:
                raise CannotFork(reason)
            if kind is not None and not refusal.is_stale:
                refuse_preload(kind, refusal.module, refusal.reason)
        assert refusal is not None
        reason = f"{FORK_ATTEMPTS} templates were unfit, the last because {refusal.reason}"
        raise CannotFork(reason)

    @classmethod
    def _execute(cls, spec: LaunchSpec, *, reports_ready: bool) -> GuardedProcess:
        """Start a guardian in a new interpreter, which executes the command."""
        program = spec.command[0]
        ours, theirs = socket.socketpair()
        try:
            if theirs.fileno() <= 2:  # an owner without standard streams; Popen fills these numbers
                low = theirs
                theirs = socket.socket(fileno=fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 3))
                low.close()
            arguments = spec.guardian_arguments(theirs.fileno(), reports_ready=reports_ready)
            popen = subprocess.Popen(  # noqa: S603 - the kernel's command, as a list
                [*bare_command("guardian"), *arguments],
                env=spec.environment(),
                pass_fds=(*spec.pass_fds, theirs.fileno()),
                start_new_session=True,
                **spec.popen_arguments,
            )
        except OSError as error:
            ours.close()
            raise StartFailed(program, _explain(error)) from error
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            return cls(spec.run_id, ours, popen)
        except BaseException:  # no descriptor is left to watch it with
            ours.close()
            popen.kill()  # and what it has started dies with it
            popen.wait()
            raise

    async def _checked_start(
        self,
        program: str,
        template: Template | None = None,
        precondition: _Precondition | None = None,
    ) -> GuardedProcess:
        try:
            if precondition is not None:
                await precondition.fulfil()
            self._open_gate()
            await self._confirm_start(program, template)
        except BaseException:
            self._close_gate()  # if it is forked after this, it runs nothing
            await run_shielded(self.give_up())
            if self.guardian is None:
                self._close()  # a guardian that is forked later finds the channel closed
            raise
        return self

    async def _confirm_start(self, program: str, template: Template | None) -> None:
        """Wait until it runs, or its template reports that it was not forked.

        A template that does not answer is ended, and its pending request with it.
        """
        while self.identity is None and self._failure is None:
            if self._channel.fileno() < 0:
                if self.guardian is None:
                    return  # no process ever held the other end: nothing was forked
                raise StartFailed(program, "its guardian died while it started")
            patience = START_PATIENCE if template is None else TEMPLATE_PATIENCE
            if not await self._wait_for_message(template, patience):
                if template is not None and self.guardian is None:
                    discard(template)
                    template = None
                    continue  # a guardian may have been forked at the last moment, or none
                cause = f"its guardian did not answer within {START_PATIENCE:.0f} s"
                raise StartFailed(program, cause)
            self._read_messages()
            if self._refusal is not None:
                return
        if self._failure is not None:
            raise StartFailed(program, _explain_failure(*self._failure))
        assert self.identity is not None
        self._exit_fd = exit_descriptor(self.identity)

    async def _wait_for_message(self, template: Template | None, patience: float) -> bool:
        """Wait for a message; return False after the patience, or if the template is stopped."""
        until = time.monotonic() + patience
        while (left := until - time.monotonic()) > 0:
            if await self._readable(self._channel.fileno, timeout=min(left, STOP_INTERVAL)):
                return True
            if template is not None and self.guardian is None and template.is_stopped:
                return False
            self._wake_guardian()
        return False

    async def ready(self, timeout: float) -> bool:
        """Wait until the process accepts requests; return whether it does.

        The wait also ends when the process has ended.
        """
        deadline = time.monotonic() + timeout
        # poll() comes first: it reads the messages that are there, which may end the wait.
        while self.poll() is None and not self.is_ready and self._channel.fileno() >= 0:
            left = deadline - time.monotonic()
            if left <= 0 or not await self._readable(self._channel.fileno, timeout=left):
                break
        return self.is_ready

    async def assign(
        self, assignment: Mapping[str, Any], meanwhile: Coroutine[Any, Any, object]
    ) -> None:
        """Give a standby kernel its assignment; return when it is ready, as `is_ready` says.

        Or when it has ended, or does not answer.

        Parameters
        ----------
        assignment
            Its command, connection file, leftovers and process attributes.
        meanwhile
            Is awaited while the kernel applies the assignment.

        Raises
        ------
        StartFailed
            It cannot apply the assignment.
        """
        line = f"assign\t{json.dumps(assignment)}\n".encode("ascii")
        deadline = time.monotonic() + ASSIGN_PATIENCE
        while line and self._channel.fileno() >= 0 and time.monotonic() < deadline:
            try:
                line = line[self._channel.send(line) :]
            except BlockingIOError:  # it is larger than the channel's buffer
                await asyncio.sleep(ASSIGN_INTERVAL)
            except OSError:
                break
        await meanwhile
        await self.ready(ASSIGN_PATIENCE)
        if self._failure is not None:
            raise StartFailed(assignment["command"][0], _explain_failure(*self._failure))

    # -- looking -----------------------------------------------------------------------------

    def poll(self) -> int | None:
        """Return the exit status, or None while the process runs."""
        self._read_messages()
        if self.status is None and self.identity is not None and not self.identity.is_alive():
            self._wake_guardian()  # it reports how the process ended, unless a signal stopped it
        return self.status

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped the process or its guardian."""
        both = (self.identity, self.guardian)
        return any(process is not None and process.is_stopped() for process in both)

    @property
    def is_gone(self) -> bool:
        """Whether the guardian has ended, and with it the run."""
        if self._popen is not None:
            return self._popen.poll() is not None
        if self.guardian is not None:
            return not self.guardian.is_alive()
        return self._channel.fileno() < 0  # no process holds the other end

    async def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the process to end; return its exit status, or None after the timeout."""
        if self.poll() is None and not await self._readable(lambda: self._exit_fd, timeout=timeout):
            return None
        # The guardian reaps the process and reports how it ended, a moment later.
        while self.poll() is None and self._channel.fileno() >= 0:
            if not await self._readable(self._channel.fileno, timeout=1.0):
                break
        return self.status

    async def _readable(self, *which: Callable[[], int | None], timeout: float | None) -> bool:
        """Wait as `waiting.readable` does, or not at all if one is closed.

        Another thread that has ended the run may close them, so they are duplicated under the lock.
        """
        with self._lock:
            given = [descriptor() for descriptor in which]
            own = [os.dup(number) for number in given if _is_open(number)]
        try:
            return len(own) < len(which) or await readable(*own, timeout=timeout)
        finally:
            for number in own:
                os.close(number)

    def exit_descriptor(self) -> int:
        """Return a new file descriptor that is readable when the process has ended.

        The caller closes it.

        Raises
        ------
        ProcessLookupError
            The process has ended already.
        """
        status = self.poll()
        with self._lock:
            if self._exit_fd is not None and status is None:
                return os.dup(self._exit_fd)
        raise ProcessLookupError("the process has ended")

    # -- ending ------------------------------------------------------------------------------

    def send_signal(self, signum: int) -> None:
        """Send a signal to the process alone; nothing happens when it has ended."""
        if self.identity is None or self.poll() is not None:
            return
        try:
            self.identity.signal(signum)
        except PermissionError:  # it became another user's, or /proc hides it
            self._send(f"signal\t{signum}\n")  # the guardian knows its child

    def request_end(self, grace: float) -> None:
        """Ask the guardian to end the run; return at once."""
        self._send(f"end\t{grace}\n")
        self._wake_guardian()

    def _wake_guardian(self) -> None:
        """Continue the guardian, in case a signal has stopped it."""
        if self.guardian is not None and not self.is_gone:
            with contextlib.suppress(PermissionError):  # /proc hides it
                self.guardian.signal(signal.SIGCONT)

    async def end(self, grace: float) -> EndReport:
        """End everything the process ever started; return when that is verified.

        Parameters
        ----------
        grace
            Seconds between SIGTERM and SIGKILL.

        Returns
        -------
        EndReport
            With ``verified`` false when the guardian was killed, or when there are ``survivors``:
            processes that do not die. The guardian keeps trying.
        """
        self._read_messages()
        self.report.survivors.clear()  # of an earlier try
        self.request_end(grace)
        deadline = time.monotonic() + grace + END_PATIENCE
        while not self.is_gone:
            self._read_messages()
            if self.report.survivors:
                break
            awaited = self._open_sources()
            left = max(0.0, deadline - time.monotonic())
            if not awaited or not await self._readable(*awaited, timeout=left):
                break
        return self._conclude()

    async def give_up(self) -> None:
        """End it after a start that failed, even if there is no descriptor left to look at it."""
        try:
            await self.end(0.0)
        except OSError as error:
            logger.debug("the end of run %s cannot be seen: %s", self.run_id, error)
            self._close()  # its guardian ends it then

    def _open_sources(self) -> list[Callable[[], int | None]]:
        sources: list[Callable[[], int | None]]
        sources = [lambda: self._guardian_exit_fd, self._channel.fileno]
        return [source for source in sources if _is_open(source())]

    def _conclude(self) -> EndReport:
        self._read_messages()
        if self.is_gone:
            with self._lock:
                self._close()
        return self.report

    def _open_gate(self) -> None:
        """Let a forked process run."""
        if self._gate is not None:
            with contextlib.suppress(OSError):  # it was never forked, or has ended
                self._gate.send(b".", socket.MSG_NOSIGNAL)
            self._close_gate()

    def _close_gate(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.close()

    def _close(self) -> None:
        self._channel.close()
        self._close_gate()
        for descriptor in (self._exit_fd, self._guardian_exit_fd):
            if descriptor is not None:
                os.close(descriptor)
        self._exit_fd = self._guardian_exit_fd = None
        if self._popen is None and self.guardian is not None:
            _reap(self.guardian)

    # -- the channel -------------------------------------------------------------------------

    def _send(self, line: str) -> None:
        try:
            self._channel.send(line.encode())
        except OSError:
            logger.debug("the guardian of run %s has gone", self.run_id)

    def _read_messages(self) -> None:
        """Read and handle the guardian's messages so far."""
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
                    self._handle_message(line.decode("utf-8", "replace").split("\t"))

    def _handle_message(self, words: list[str]) -> None:
        match words:
            case ["guardian", identity]:
                self._set_guardian(ProcessIdentity.parse(identity))
            case ["started", pid, start_time]:
                self.identity = ProcessIdentity(int(pid), int(start_time))
            case ["failed", number, *what]:
                self._failure = (int(number), "".join(what))
            case ["refused", is_stale, module, reason]:
                self._refusal = Refusal(is_stale == "1", module, reason)
            case ["ready"]:
                self.is_ready = True
            case ["exited", status]:
                self.status = int(status)
            case _ if not self.report.add_line(words):
                logger.warning("unknown word from the guardian of run %s", self.run_id)

    def _lose_guardian(self) -> None:
        """Handle the end of the channel: the run is over, or its guardian was killed."""
        self._channel.close()
        if self.status is None and self.identity is not None:
            self.status = -int(signal.SIGKILL)  # the kernel's parent-death signal


def _is_open(descriptor: int | None) -> TypeGuard[int]:
    return descriptor is not None and descriptor >= 0


def _reap(guardian: ProcessIdentity) -> None:
    """Reap a forked guardian that became our child when its template ended.

    That happens in a process that is the first of its container, or a subreaper.
    """
    status = read_status(guardian.pid)
    if status is None or not status.is_dead or status.parent != os.getpid():
        return
    if status.start_time == guardian.start_time:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(guardian.pid, os.WNOHANG)


def _explain_failure(number: int, what: str) -> str:
    if number == errno.ENOENT and not what:
        return f"{os.strerror(number)}; is the interpreter of this kernelspec still installed?"
    if number == errno.EAGAIN:
        return f"{os.strerror(number)}; {TOO_MANY_PROCESSES}"
    return os.strerror(number) + (f": {what}" if what else "")


def _explain(error: OSError) -> str:
    if error.errno == errno.EAGAIN:
        return _explain_failure(error.errno, "")
    text = error.strerror or str(error)
    return f"{text}: {error.filename}" if error.filename else text


_alive: WeakSet[GuardedProcess] = WeakSet()


def _release_in_child() -> None:
    """Close every channel in a forked child: only the owner's end may keep a guardian waiting."""
    for process in list(_alive):
        process._channel.close()  # noqa: SLF001 - of this module
        process._close_gate()  # noqa: SLF001


os.register_at_fork(after_in_child=_release_in_child)
