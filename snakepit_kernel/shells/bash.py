"""One bash process, under a guardian of its own, and the commands that it runs."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import signal
import subprocess
from collections.abc import Collection, Mapping
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
from .outputs import PIPE_BYTES, READ_BYTES, Output
from .snapshots import State, changes

logger = get_logger(__name__)

START_SECONDS = 30.0
"""Seconds in which bash must have begun."""

WATCH_INTERVAL = 0.25
"""Seconds between looks whether bash waits for a line while its reply is awaited."""

WEDGED_LOOKS = 3
"""Such looks in a row that find it waiting for a line, until it counts as wedged."""

SNAPSHOT_SECONDS = 10.0
"""Seconds in which bash must have written its state."""

GIVE_UP_SECONDS = 0.5
"""Seconds in which bash exits at the end of its input."""

LOST_NOW = "what this command changed"
LOST_SINCE = "what changed since the last checkpoint"


class Wedged(Exception):
    """Bash waits for its next line, and has not said that the last command has ended."""


class NotRun(Exception):
    """Bash did not run a command, because it could not set a variable of its environment."""


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
    outputs
        The pipes for the output of its commands.
    """

    def __init__(self, code: BashCode, registry: Registry) -> None:
        self.cwd = ""
        self.status = 0
        self.is_dirty = False
        self.lost = LOST_NOW
        self.state = State()
        self.outputs: list[Output] = []
        self._code = code
        self._registry = registry
        self._run: GuardedRun | None = None
        self._driver = -1
        self._control = -1
        self._pipe = ""
        self._inbox = b""
        self._awaited = b""
        self._reply: asyncio.Future[int] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._looks = 0
        self._loop = asyncio.get_running_loop()
        self._gone = self._loop.create_future()
        self._exit_fd = -1
        self._environment: Mapping[str, str] = {}
        self._unsent = b""
        self._awaits_room = False
        self._is_posix = False
        self._temporary: Collection[str] = ()
        self._cwd_before: str | None = None
        self._command_fd = -1

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
        self.outputs = [
            Output("stdout", self._code.folder / "out"),
            Output("stderr", self._code.folder / "err"),
        ]
        begin = self._code.begin(saved if state.code else None)
        async with asyncio.timeout(START_SECONDS):
            await self._ask("R", begin)

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
        for output in self.outputs:
            output.close()
        if self._driver >= 0:
            self._loop.remove_writer(self._driver)
        for fd in (self._control, self._exit_fd):
            if fd >= 0:
                self._loop.remove_reader(fd)
        for fd in (self._control, self._driver, self._exit_fd, self._command_fd):
            if fd >= 0:
                os.close(fd)
        self._control = self._driver = self._exit_fd = self._command_fd = -1
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
        self._fail(EOFError())

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
            if found and word[1:] == self._awaited[1:] and self._reply is not None:
                self._take_reply(word, *values.split(b" ", 1))

    def _take_reply(self, word: bytes, status: bytes, cwd: bytes = b"") -> None:
        """Take the reply that is awaited.

        Its status has the number of the command before it, and a ``p`` before that in POSIX mode.
        """
        self._is_posix = status.startswith(b"p")
        number, _, status = status.removeprefix(b"p").rpartition(b":")
        if word.startswith(b"N") or (word.startswith(b"D") and number != word[1:]):
            self._fail(NotRun())
            return
        if not word.startswith(b"S"):
            self.cwd = os.fsdecode(cwd)
        reply = self._end_wait()
        if reply is not None and not reply.done():
            reply.set_result(int(status))

    def _fail(self, error: Exception) -> None:
        """Let the reply that is awaited be an error."""
        reply = self._end_wait()
        if reply is not None and not reply.done():
            reply.set_exception(error)

    def _end_wait(self) -> asyncio.Future[int] | None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        reply, self._reply = self._reply, None
        return reply

    def _ask(self, word: str, lines: str) -> asyncio.Future[int]:
        """Send lines; return the future of the reply to them.

        It fails with `EOFError` when bash has ended, with `NotRun`, and with `Wedged` when bash
        waits for its next line and has not replied.
        """
        self._end_wait()
        reply = self._reply = self._loop.create_future()
        reply.add_done_callback(_note_outcome)
        self._awaited = word.encode("ascii")
        if self.has_ended:
            self._fail(EOFError())
            return reply
        self._looks = 0
        self._watch = self._loop.call_later(WATCH_INTERVAL, self._look)
        self._send(lines)
        return reply

    def _look(self) -> None:
        """Look whether bash waits for a line, though it has not replied."""
        self._watch = None
        if self._reply is None:
            return
        self._looks = self._looks + 1 if self.awaits_line and not self._unsent else 0
        if self._looks == WEDGED_LOOKS:
            self._fail(Wedged())
            return
        self._watch = self._loop.call_later(WATCH_INTERVAL, self._look)
        if self._looks == 1:  # perhaps the user has disabled what the short line replies with
            self._send(self._code.reply_again(self._awaited.decode("ascii")))

    def _send(self, lines: str) -> None:
        """Write lines to bash, as soon as there is room for them."""
        self._unsent += os.fsencode(lines) + b"\n"
        self._send_rest()

    def _send_rest(self) -> None:
        try:
            while self._unsent and self._driver >= 0:
                self._unsent = self._unsent[os.write(self._driver, self._unsent) :]
        except BlockingIOError:
            if not self._awaits_room:
                self._awaits_room = True
                self._loop.add_writer(self._driver, self._send_rest)
            return
        except BrokenPipeError:
            self._unsent = b""
            self._fail(EOFError())
        if self._awaits_room and self._driver >= 0:
            self._awaits_room = False
            self._loop.remove_writer(self._driver)

    # -- commands ------------------------------------------------------------------------------

    def run(
        self,
        number: int,
        text: bytes,
        *,
        cwd: str | None,
        env: Mapping[str, str | None],
        stdin: IO[bytes] | bytes | None,
    ) -> asyncio.Future[int]:
        """Run a command; return the future of its status, see `_ask`.

        Raises
        ------
        OSError
            Its files cannot be written. Nothing runs.
        """
        self._write_command(text)
        if stdin is not None:
            stdin_path = self._code.folder / "in"
            stdin_path.unlink(missing_ok=True)
            _write(stdin_path, stdin)
        self.lost = LOST_SINCE if self.is_dirty else LOST_NOW
        self.is_dirty = True
        self._temporary = env.keys()
        self._cwd_before = None if cwd is None else self.cwd
        line = self._code.run(
            number, self.status, cwd, env, has_stdin=stdin is not None, is_posix=self._is_posix
        )
        return self._ask(f"D{number}", line)

    def _write_command(self, text: bytes) -> None:
        """Write the file with the user's text, which is kept open: opening it takes longer."""
        if not self.has_files:
            if self._command_fd >= 0:
                os.close(self._command_fd)
                self._command_fd = -1
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._command_fd = os.open(self._code.command_file, flags, 0o600)
        written = 0
        while written < len(text):
            written += os.pwrite(self._command_fd, text[written:] if written else text, written)
        os.ftruncate(self._command_fd, written)  # not to 0 before: ext4 would write it to disk

    @property
    def has_files(self) -> bool:
        """Whether its folder is there, as far as it has used it."""
        return self._command_fd >= 0 and os.fstat(self._command_fd).st_nlink > 0

    def end_unwinding(self) -> None:
        """Let it run commands again after an interrupt."""
        if self._driver >= 0:
            self._send(f"{self._code.end_unwinding()}\n{os.fsdecode(self.state.debug_trap)}")

    async def take_snapshot(self, timeout: float = SNAPSHOT_SECONDS) -> None:
        """Bring `state` up to date, unless it ends meanwhile; it is ended if it takes longer."""
        path = self._code.snapshot_file
        path.unlink(missing_ok=True)
        try:
            async with asyncio.timeout(timeout):
                await self._ask("S", self._code.snapshot())
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
            return is_idle and not any(output.is_held for output in self.outputs)

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


def _has_other_children(guardian: int, shell: int) -> bool:
    """Whether anything runs below a guardian beside a shell without children."""
    try:
        return _children(guardian) not in (b"", b"%d " % shell) or _children(shell) != b""
    except OSError:
        return True


def _children(pid: int) -> bytes:
    """Read the pids of a process's children, each followed by a space."""
    fd = os.open(f"/proc/{pid}/task/{pid}/children", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


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


def _note_outcome(reply: asyncio.Future[int]) -> None:
    """Take note of an error that nobody may be waiting for."""
    if not reply.cancelled():
        reply.exception()
