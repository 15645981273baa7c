"""One bash process, under a guardian of its own, and the commands that it runs."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO

from ..errors import SurvivorsError
from ..ids import new_run_id
from ..loggers import get_logger
from ..processes.identity import ProcessIdentity, ProcessStatus, descendants, read_status
from ..processes.launch_spec import LaunchSpec
from ..processes.run import GuardedRun
from ..processes.run_registry import Registry
from .bash_code import UNWIND_SIGNAL, BashCode, read_snapshot
from .results import StreamName
from .snapshots import State, changes

logger = get_logger(__name__)

PIPE_BYTES = 1 << 20
"""Size of the pipes for output, if the system allows it."""

FIFO_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC

READ_BYTES = 1 << 20
"""Largest piece of output that is read at once."""

DRAIN_SECONDS = 0.03
"""Seconds after the end of a command in which a process may still close its output."""

START_SECONDS = 30.0
"""Seconds in which bash must have begun."""

KILL_AFTER = 0.5
"""Seconds after an interrupt until what the command started is killed."""

ABANDON_AFTER = 1.0
"""Seconds after an interrupt until bash itself is killed."""

UNWIND_INTERVAL = 0.2
"""Seconds between two signals to bash to give up its command."""

WATCH_INTERVAL = 0.25
"""Seconds between looks whether bash waits for a line while its reply is awaited."""

WEDGED_LOOKS = 3
"""Such looks in a row that find it waiting for a line, until it counts as wedged."""

LATE_BYTES = 1 << 16
"""Bytes that are kept of what a background process of a command writes after its end."""

SNAPSHOT_SECONDS = 10.0
"""Seconds in which bash must have written its state."""

GIVE_UP_SECONDS = 0.5
"""Seconds in which bash exits at the end of its input."""

LOST_NOW = "what this command changed"
LOST_SINCE = "what changed since the last checkpoint"

OnOutput = Callable[[StreamName, bytes], None]


class Wedged(Exception):
    """Bash waits for its next line, and has not said that the last command has ended."""


class NotRun(Exception):
    """Bash did not run a command, because it could not set a variable of its environment."""


class Output:
    """One output pipe of a session's commands: a FIFO, which bash opens for each command.

    Parameters
    ----------
    stream
        Its name.
    path
        The FIFO.
    """

    def __init__(self, stream: StreamName, path: Path) -> None:
        self.stream = stream
        self.path = path
        self.fd = -1
        self.is_over = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_output: OnOutput = _ignore
        self._on_end: Callable[[], None] = _nothing

    def begin(self, on_output: OnOutput, on_end: Callable[[], None]) -> None:
        """Open it for the next command.

        A new descriptor, because that of an earlier command is at its end: until the next writer
        comes, it would say so again and again.

        Raises
        ------
        OSError
            It cannot be opened.
        """
        self.pause()  # the reader of a command that was cancelled may still wait
        try:
            fd = os.open(self.path, FIFO_FLAGS)
        except FileNotFoundError:  # it was left to a background process, or is the first one
            os.mkfifo(self.path, 0o600)
            fd = os.open(self.path, FIFO_FLAGS)
        previous, self.fd = self.fd, fd
        if previous >= 0:
            os.close(previous)
        else:
            with contextlib.suppress(OSError):  # the limit of the user is reached
                fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.is_over = False
        self._on_output, self._on_end = on_output, on_end
        self.resume()

    def resume(self) -> None:
        """Read it when there is something."""
        if self._loop is None and not self.is_over and self.fd >= 0:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self.fd, self._on_readable)

    def pause(self) -> None:
        """Do not read it for now: its writers wait."""
        if self._loop is not None:
            self._loop.remove_reader(self.fd)
            self._loop = None

    def _on_readable(self) -> None:
        self.read_once()
        if self.is_over:
            self._on_end()

    def read_once(self) -> bool:
        """Read what is there, up to a limit; return whether there may be more at once."""
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return False
        if data:
            self._on_output(self.stream, data)
            return True
        self.is_over = True
        self.pause()
        return False

    def drain(self) -> None:
        """Read all that was written so far, but not what is written meanwhile: that may never end.

        A command has written all that it wrote when bash says that it has ended.
        """
        if not self.is_over and (there := readable_bytes(self.fd)):
            self._on_output(self.stream, os.read(self.fd, there))
        if not self.is_over:
            self.read_once()  # or its end

    @property
    def was_opened(self) -> bool:
        """Whether a writer has opened it since it began."""
        poll = select.poll()
        poll.register(self.fd, 0)
        return not self.is_over or bool(poll.poll(0))  # it was hung up, so there was a writer

    def detach(self) -> DetachedOutput | None:
        """Leave the pipe to a background process that still writes; the next command has a new one.

        Returns
        -------
        DetachedOutput or None
            What reads it from now on; None when nobody writes any more.
        """
        self.pause()
        if self.is_over:
            return None
        left = DetachedOutput(self.fd)
        self.fd = -1
        with contextlib.suppress(OSError):
            self.path.unlink()
        return left

    def discard(self) -> None:
        """Drop what is in it, and what still comes; the next command has a new pipe."""
        self.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def close(self) -> None:
        """Close it."""
        self.pause()
        self.is_over = True
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class DetachedOutput:
    """What a command's background processes write after its end: it is read, and its end is kept.

    Parameters
    ----------
    fd
        File descriptor to read.
    """

    def __init__(self, fd: int) -> None:
        self.tail = bytearray()
        self._limit = LATE_BYTES
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._fd, READ_BYTES)
            self.tail += data
            del self.tail[: max(0, len(self.tail) - self._limit)]
            if not data:
                self.close()

    def forget(self) -> None:
        """Keep no more of it; it is read on, so that its writer does not wait."""
        self.tail.clear()
        self._limit = 0

    def close(self) -> None:
        """Stop reading."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


class Bash:
    """A bash process, its pipes, and the command that it runs.

    Its coroutines run in one event loop, one command at a time.

    Parameters
    ----------
    code
        The code that it runs for the driver, and its folder.

    Attributes
    ----------
    cwd
        Its working directory after the last command.
    status
        ``$?`` of the last command.
    state
        Its state as of the last snapshot.
    is_dirty
        A command has run since then.
    lost
        What is lost if the process ends without leaving its state.
    """

    def __init__(self, code: BashCode, registry: Registry) -> None:
        self.cwd = ""
        self.status = 0
        self.is_dirty = False
        self.lost = LOST_NOW
        self.state = State()
        self._code = code
        self._registry = registry
        self._run: GuardedRun | None = None
        self._driver = -1
        self._control = -1
        self._pipe = ""
        self._inbox = b""
        self._replies: dict[str, asyncio.Future[int]] = {}
        self._loop = asyncio.get_running_loop()
        self._gone = self._loop.create_future()
        self._exit_fd = -1
        self._environment: Mapping[str, str] = {}
        self._unsent = b""
        self._temporary: Collection[str] = ()
        self._cwd_before: str | None = None
        self._outputs: list[Output] = []

    # -- start and end -------------------------------------------------------------------------

    async def start(
        self,
        program: str,
        *,
        label: str,
        env: Mapping[str, str],
        cwd: str,
        state: State,
        grace: float,
    ) -> None:
        """Start it, and wait until it takes commands.

        Parameters
        ----------
        program
            The path of bash.
        label, env, cwd, grace
            As for `GuardedRun.start`.
        state
            The state to begin with: that of another one.

        Raises
        ------
        StartFailed
            It could not be started.
        EOFError, TimeoutError, Wedged
            It has ended or does not answer, perhaps because of the state.
        """
        with contextlib.ExitStack() as stack:
            ends = {}
            for name in ("stdin", "stdout"):
                reading, writing = os.pipe()
                ends[name], own = (reading, writing) if name == "stdin" else (writing, reading)
                stack.callback(os.close, ends[name])
                os.set_blocking(own, False)
                if name == "stdin":
                    self._driver = own
                else:
                    self._control = own
            spec = LaunchSpec.of(
                [program, "--noprofile", "--norc"],
                run_id=new_run_id(),
                grace=grace,
                env=env,
                cwd=cwd,
                leftovers=[self._code.folder.parent],  # as of workers: all of their owner's run
                is_program=True,
                stderr=subprocess.DEVNULL,
                **ends,
            )
            self._pipe = _link(f"/proc/self/fd/{self._driver}")
            self._run = await GuardedRun.start(spec, registry=self._registry, label=label)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._driver, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._loop.add_reader(self._control, self._on_control)
        try:
            self._exit_fd = self._run.process.exit_descriptor()
            self._loop.add_reader(self._exit_fd, self._on_exit)
        except ProcessLookupError:
            self._gone.set_result(None)
        self._environment = env
        self.state = state
        saved = self._code.folder / "state"
        _write(saved, state.code)
        for stream, name in (("stdout", "out"), ("stderr", "err")):
            self._outputs.append(Output(stream, self._code.folder / name))  # type: ignore[arg-type]
        begin = self._code.begin(saved if state.code else None)
        async with asyncio.timeout(START_SECONDS):
            await self.answer(self._ask("R", begin))

    async def answer(self, reply: asyncio.Future[int]) -> int:
        """Wait for a reply; return its status.

        Raises
        ------
        EOFError
            The process has ended.
        Wedged
            It waits for its next line, and has not replied to the last one.
        """
        looks = 0
        while True:
            await asyncio.wait([reply], timeout=WATCH_INTERVAL)
            if reply.done():
                return reply.result()
            looks = looks + 1 if self.awaits_line and not self._unsent else 0
            if looks == WEDGED_LOOKS:
                raise Wedged

    @property
    def run_id(self) -> str:
        """Its run."""
        return "" if self._run is None else self._run.run_id

    @property
    def pid(self) -> int:
        """Its process id."""
        identity = None if self._run is None else self._run.process.identity
        return 0 if identity is None else identity.pid

    @property
    def has_ended(self) -> bool:
        """Whether its process has ended, even if the loop has not noticed yet."""
        if not self._gone.done() and self._exit_fd >= 0:
            poll = select.poll()
            poll.register(self._exit_fd, select.POLLIN)
            if poll.poll(0):
                self._on_exit()
        return self._gone.done()

    async def end(self, grace: float) -> None:
        """End it and everything that it started; return when that is verified."""
        self._close()
        if self._run is not None:
            report = await self._run.end(grace)
            if report.survivors:
                logger.warning("%s", SurvivorsError(self.run_id, report.survivors))

    def _close(self) -> None:
        for output in self._outputs:
            output.close()
        if self._driver >= 0:
            self._loop.remove_writer(self._driver)
        for fd in (self._control, self._exit_fd):
            if fd >= 0:
                self._loop.remove_reader(fd)
        for fd in (self._control, self._driver, self._exit_fd):
            if fd >= 0:
                os.close(fd)
        self._control = self._driver = self._exit_fd = -1
        self._on_exit()

    def kill(self) -> None:
        """Kill the process itself."""
        if self._run is not None:
            self._run.process.send_signal(signal.SIGKILL)

    async def give_up(self) -> None:
        """End a process that takes no lines any more: at the end of its input, or by a signal."""
        if self._driver >= 0:
            self._loop.remove_writer(self._driver)
            with contextlib.suppress(OSError):
                os.write(self._driver, f"{self._code.last_status()}\n".encode())
            os.close(self._driver)
            self._driver = -1
        await asyncio.wait([self._gone], timeout=GIVE_UP_SECONDS)
        while not self.has_ended:
            self.kill()
            await asyncio.wait([self._gone], timeout=GIVE_UP_SECONDS)

    # -- the control pipe ----------------------------------------------------------------------

    def _on_exit(self) -> None:
        if self._exit_fd >= 0:
            self._loop.remove_reader(self._exit_fd)
        if not self._gone.done():
            if self._control >= 0:
                self._on_control()  # it may have answered right before
            self._gone.set_result(None)
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(EOFError())

    def _on_control(self) -> None:
        try:
            data = os.read(self._control, 65536)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._control)  # a user's code has closed it
            return
        *messages, self._inbox = (self._inbox + data).split(b"\0")
        self._inbox = self._inbox[-65536:]  # a user's traps may write here as well
        for message in messages:
            _, found, rest = message.rpartition(self._code.cookie.encode() + b" ")
            word, _, values = rest.partition(b" ")
            reply = self._replies.get(word.decode("ascii", "replace"))
            if found and reply is not None and not reply.done():
                status, _, cwd = values.partition(b" ")
                if not word.startswith(b"S"):
                    self.cwd = os.fsdecode(cwd)
                reply.set_result(int(status))

    def _ask(self, word: str, lines: str) -> asyncio.Future[int]:
        """Send lines; return the future of the reply to them.

        Raises
        ------
        EOFError
            It has ended.
        """
        reply = self._loop.create_future()
        reply.add_done_callback(_note_outcome)
        self._replies = {word: reply}
        if self.has_ended:
            reply.set_exception(EOFError())
            return reply
        self._send(lines)
        return reply

    def _send(self, lines: str) -> None:
        """Write lines to bash, as soon as there is room for them."""
        self._unsent += os.fsencode(lines) + b"\n"
        self._send_rest()

    def _send_rest(self) -> None:
        try:
            while self._unsent and self._driver >= 0:
                self._unsent = self._unsent[os.write(self._driver, self._unsent) :]
        except BlockingIOError:
            self._loop.add_writer(self._driver, self._send_rest)
        except BrokenPipeError:
            self._unsent = b""
            for reply in self._replies.values():
                if not reply.done():
                    reply.set_exception(EOFError())
        if not self._unsent and self._driver >= 0:
            self._loop.remove_writer(self._driver)

    # -- commands ------------------------------------------------------------------------------

    def begin(
        self,
        number: int,
        text: bytes,
        *,
        cwd: str | None,
        env: Mapping[str, str | None],
        stdin: IO[bytes] | bytes | None,
        on_output: OnOutput,
    ) -> Command:
        """Begin a command.

        Raises
        ------
        OSError
            Its files cannot be written. Nothing runs.
        """
        folder = self._code.folder
        _write(self._code.command_file, text)
        stdin_path = folder / "in"
        if stdin is None:
            if not stdin_path.is_symlink():
                stdin_path.unlink(missing_ok=True)
                stdin_path.symlink_to(os.devnull)
        else:
            stdin_path.unlink(missing_ok=True)
            _write(stdin_path, stdin)
        known = self.processes()
        command = Command(self, number, known)
        for output in self._outputs:
            output.begin(on_output, command.on_output_end)
        self.lost = LOST_SINCE if self.is_dirty else LOST_NOW
        self.is_dirty = True
        self._temporary = env.keys()
        self._cwd_before = None if cwd is None else self.cwd
        command.reply = self._ask(f"D{number}", self._code.run(number, self.status, cwd, env))
        return command

    @property
    def outputs(self) -> list[Output]:
        """Its pipes for output."""
        return self._outputs

    def end_unwinding(self) -> None:
        """Let it run commands again after an interrupt."""
        if self._driver >= 0:
            self._send(f"{self._code.end_unwinding()}\n{os.fsdecode(self.state.debug_trap)}")

    async def take_snapshot(self, timeout: float = SNAPSHOT_SECONDS) -> None:
        """Bring `state` up to date, unless it ends meanwhile; it is ended if it takes longer."""
        path = self._code.snapshot_file
        path.unlink(missing_ok=True)
        reply = self._ask("S", self._code.snapshot())
        try:
            async with asyncio.timeout(timeout):
                await self.answer(reply)
        except EOFError:
            return
        except (TimeoutError, Wedged):
            await self.give_up()
            return
        if (found := read_snapshot(path)) is not None:
            self.state = changes(found, self._code.cookie, self._environment)
            self.is_dirty = False
            if not self.state.has_exit_trap:  # the user has removed that of the driver
                self._send(self._code.exit_trap())

    def state_at_exit(self) -> State | None:
        """Return the state that it left when it exited; None if it left none."""
        found = read_snapshot(self._code.folder / "left")
        if found is None:
            return None
        left = changes(
            found,
            self._code.cookie,
            self._environment,
            previous=self.state,
            temporary=self._temporary,
            cwd=self._cwd_before,
        )
        is_unsure = bool(left.hidden) and self.lost == LOST_SINCE
        names = b", ".join(sorted(left.hidden)).decode("ascii", "replace")
        self.lost = f"what {names} was outside of a function" if is_unsure else ""
        return left

    async def exit_status(self) -> int:
        """Return the exit status of the process, which has ended."""
        assert self._run is not None
        status = await self._run.process.wait(START_SECONDS)
        return 1 if status is None else status if status >= 0 else 128 - status

    # -- its processes -------------------------------------------------------------------------

    def processes(self) -> set[ProcessIdentity]:
        """Return the processes that it has started and that live."""
        guardian = None if self._run is None else self._run.process.guardian
        if guardian is None or not _has_other_children(guardian.pid, self.pid):
            return set()
        return {
            ProcessIdentity(status.pid, status.start_time)
            for status in self._below(guardian.pid)
            if status.pid != self.pid
        }

    def _below(self, pid: int) -> list[ProcessStatus]:
        return [status for status in descendants(pid) if not status.is_dead]

    def unwind(self) -> None:
        """Ask it to give up its command."""
        if self._run is not None:
            self._run.process.send_signal(UNWIND_SIGNAL)

    @property
    def awaits_line(self) -> bool:
        """Whether it waits for its next line, and not for the input of a command."""
        try:
            with open(f"/proc/{self.pid}/syscall", "rb") as file:  # noqa: PTH123
                is_reading = file.read().split()[1:2] == [b"0x0"]  # from its standard input
            return is_reading and _link(f"/proc/{self.pid}/fd/0") == self._pipe
        except OSError:  # not allowed here
            status = read_status(self.pid)
            is_idle = status is not None and status.state == "S" and not self.processes()
            return is_idle and all(output.is_over for output in self._outputs)

    def started_by(self, number: int, known: set[ProcessIdentity]) -> list[ProcessIdentity]:
        """Return the processes that a command has started.

        Parameters
        ----------
        number
            Its number.
        known
            Those that were there before. What these start meanwhile is none of the command's.
        """
        guardian = None if self._run is None else self._run.process.guardian
        if guardian is None:
            return []
        others, found = {process.pid for process in known}, []
        for status in self._below(guardian.pid):
            if status.pid == self.pid:
                continue
            tag = _tag(status.pid, self._code.tag)
            if status.pid in others or status.parent in others or tag not in {None, number}:
                others.add(status.pid)
            else:
                found.append(ProcessIdentity(status.pid, status.start_time))
        return found

    def left_by(self, number: int, heedless: Collection[ProcessIdentity]) -> list[ProcessIdentity]:
        """Return what lives of a command that has ended, and of what that has started since.

        Parameters
        ----------
        number
            Its number.
        heedless
            Those of its processes that lived when it ended. Others may be of later commands.
        """
        guardian = None if self._run is None else self._run.process.guardian
        if guardian is None:
            return []
        pids, found = {process.pid for process in heedless if process.is_alive()}, []
        for status in self._below(guardian.pid):
            is_of_it = status.pid in pids or status.parent in pids
            if is_of_it or (status.pid != self.pid and _tag(status.pid, self._code.tag) == number):
                pids.add(status.pid)
                found.append(ProcessIdentity(status.pid, status.start_time))
        return found


class Command:
    """A command that runs in a shell.

    Parameters
    ----------
    bash
        The shell.
    number
        Its number.
    known
        The processes that were there before.
    """

    def __init__(self, bash: Bash, number: int, known: set[ProcessIdentity]) -> None:
        self.number = number
        self.reply: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.began = time.monotonic()
        self.late: list[DetachedOutput] = []
        self._bash = bash
        self._known = known
        self._ended = asyncio.Event()

    def on_output_end(self) -> None:
        """Note that nobody writes to one of its outputs any more."""
        if all(output.is_over for output in self._bash.outputs):
            self._ended.set()

    async def wait(self) -> int:
        """Wait for its end; return its status.

        Raises
        ------
        EOFError
            The shell has ended.
        Wedged
            The shell waits for its next line, and has not reported the end.
        """
        return await self._bash.answer(self.reply)

    async def finish(self) -> None:
        """Read the rest of its output.

        Raises
        ------
        NotRun
            It has not run at all: bash had opened its output otherwise.
        """
        for output in self._bash.outputs:
            output.drain()
        if not self._bash.has_ended and not any(each.was_opened for each in self._bash.outputs):
            raise NotRun
        if not self._is_over():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), DRAIN_SECONDS)
        for output in self._bash.outputs:
            output.pause()

    def _is_over(self) -> bool:
        self.on_output_end()
        return self._ended.is_set()

    def detach(self) -> bool:
        """Leave its output to what still writes there; return whether something does."""
        late = [output.detach() for output in self._bash.outputs if not output.is_over]
        self.late = [each for each in late if each is not None]
        return bool(self.late)

    def discard(self) -> None:
        """Drop the rest of its output, for which nobody waits any more."""
        for output in self._bash.outputs:
            output.discard()

    async def interrupt(self) -> None:
        """Interrupt it until it ends: first politely, in the end by killing the shell."""
        began = time.monotonic()
        unwound = -UNWIND_INTERVAL
        signum = signal.SIGTERM
        while not self.reply.done():
            passed = time.monotonic() - began
            if passed > ABANDON_AFTER:
                self._bash.kill()
            elif passed > KILL_AFTER:
                signum = signal.SIGKILL
            if passed - unwound > UNWIND_INTERVAL:
                unwound = passed
                self._bash.unwind()
            self._signal(signum)
            await asyncio.wait([self.reply], timeout=0.002 if passed < 0.05 else 0.02)
        heedless = self._signal(signum)
        self._bash.end_unwinding()
        if heedless:
            until = began + KILL_AFTER - time.monotonic()
            asyncio.get_running_loop().call_later(max(0.0, until), self._kill, heedless)

    def _kill(self, heedless: list[ProcessIdentity]) -> None:
        """Kill what lives of it, long after the interrupt: it does not heed SIGTERM."""
        for process in self._bash.left_by(self.number, heedless):
            with contextlib.suppress(PermissionError, ProcessLookupError):
                process.signal(signal.SIGKILL)

    def _signal(self, signum: int) -> list[ProcessIdentity]:
        """Signal what the command has started; return it."""
        processes = self._bash.started_by(self.number, self._known)
        for process in processes:
            with contextlib.suppress(PermissionError, ProcessLookupError):
                process.signal(signum)
                if signum == signal.SIGTERM:
                    process.signal(signal.SIGCONT)
        return processes


def _has_other_children(guardian: int, shell: int) -> bool:
    """Whether anything runs below a guardian beside a shell without children."""
    try:
        return any(
            _children(pid) not in ([], [str(shell)] if pid == guardian else [])
            for pid in (guardian, shell)
        )
    except OSError:
        return True


def _children(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:  # noqa: PTH123
        return file.read().split()


def _link(path: str) -> str:
    return str(Path(path).readlink())


def _tag(pid: int, name: str) -> int | None:
    """Return the number of the command in whose environment a process was executed, if any."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            _, found, rest = (b"\0" + file.read()).partition(f"\0{name}=".encode())
    except OSError:
        return None
    value = rest.partition(b"\0")[0]
    return int(value) if found and value.isdigit() else None


def _write(path: Path, content: IO[bytes] | bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as file:  # noqa: PTH123
        if isinstance(content, bytes):
            file.write(content)
        else:
            while piece := content.read(READ_BYTES):
                file.write(piece)


def readable_bytes(fd: int) -> int:
    """Return how many bytes wait in a pipe."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def _note_outcome(reply: asyncio.Future[int]) -> None:
    """Take note of an error that nobody may be waiting for."""
    if not reply.cancelled():
        reply.exception()


def _ignore(stream: StreamName, data: bytes) -> None:
    """Drop output."""


def _nothing() -> None:
    """Do nothing."""
