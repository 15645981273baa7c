"""Drives the shell of a session: its queue, its restarts, its state, in the loop of the shells."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal, Self, get_args

from .. import telemetry
from ..errors import ShellBusy, ShellClosed, SnakepitError, StartFailed
from ..loggers import get_logger
from ..paths import working_directory
from ..processes.concurrency import in_thread
from ..processes.run_folders import make_folder, remake_folder, remove_folder
from ..processes.run_registry import Registry
from ..processes.waiting import run_shielded
from ..telemetry.correlation import correlation_of_work
from ..telemetry.spans import Scalar
from ..tracebacks import hides_own_frames
from ..validation import check_count, check_flag, check_seconds
from .bash import Bash, NotRun, Wedged
from .bash_code import BashCode, check_environment
from .command import Command
from .outputs import DetachedOutput, OnOutput
from .results import MAX_OUTPUT, Capture, ShellResult, StreamName
from .snapshots import State

logger = get_logger(__name__)

Checkpoint = Literal["always", "idle", "never"]
OnExit = Literal["restart", "terminate"]

TIMED_OUT, INTERRUPTED = 124, 130
"""Exit statuses of commands that were ended."""

IDLE_SECONDS = 0.05
"""Seconds after a command until the state of an idle shell is checkpointed."""

MAX_LATE = 16
"""Commands whose late output is kept."""

MAX_STATE_BYTES = 4 << 20
"""Largest state of a shell that is kept with its session."""

CLOSE_SECONDS = 1.0
"""Seconds in which a shell that is closed must have written its state."""

GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL at the end of a shell whose owner has died."""

DEFAULT: Final = "default"

_MAY_END_THE_SHELL = re.compile(
    r"\b(exec|exit|kill|pkill|killall|trap|ulimit|enable|builtin|noexec)\b|\bset\s+-\w*n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellOptions:
    """How the shell of a session begins, and what it does.

    Attributes
    ----------
    env
        Environment variables beyond those of this process; None stands for one that is not set.
    cwd
        Its first working directory.
    timeout
        Seconds for each command that names no other number; None for no limit.
    max_output
        Bytes of each output stream that results keep.
    checkpoint
        When its state is kept: after each command (``"always"``), some time after the last one
        (``"idle"``), or only while it runs (``"never"``).
    on_exit
        Whether ``exit`` ends the command alone (``"restart"``), or the shell (``"terminate"``).
    """

    env: Mapping[str, str | None] = field(default_factory=dict)
    cwd: str = ""
    timeout: float | None = None
    max_output: int = MAX_OUTPUT
    checkpoint: Checkpoint = "idle"
    on_exit: OnExit = "restart"

    @classmethod
    @hides_own_frames  # callers pass options on
    def checked(
        cls,
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
        max_output: int = MAX_OUTPUT,
        checkpoint: str = "idle",
        on_exit: str = "restart",
    ) -> Self:
        """Check what the user gave.

        Raises
        ------
        TypeError, ValueError, NotADirectoryError, PermissionError
            An option is wrong; it is named.
        """
        return cls(
            env=check_environment(env or {}),
            cwd=working_directory() if cwd is None else check_directory(cwd),
            timeout=check_seconds("timeout", timeout),
            max_output=check_count("max_output", max_output, 0),
            checkpoint=_one_of("checkpoint", checkpoint, get_args(Checkpoint)),
            on_exit=_one_of("on_exit", on_exit, get_args(OnExit)),
        )

    def environment(self) -> dict[str, str]:
        """Return the environment of the shell."""
        environment = {**os.environ}
        for name, value in self.env.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
        return environment


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRequest:
    """A command and its options, see `Shell.run`."""

    command: str
    timeout: float | None
    cwd: str | None
    env: Mapping[str, str | None]
    stdin: bytes | IO[bytes] | None
    queue: bool
    max_output: int
    spool: bool
    correlation: str = field(default_factory=correlation_of_work)
    asked: float = field(default_factory=time.monotonic)
    span: telemetry.Begun | None = field(
        default_factory=lambda: telemetry.begin("shell") if telemetry.is_on() else None
    )

    @classmethod
    @hides_own_frames  # callers pass options on
    def checked(
        cls,
        shell: ShellOptions,
        command: str,
        *,
        timeout: float | str | None = DEFAULT,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str | None] | None = None,
        stdin: str | bytes | IO[bytes] | None = None,
        queue: bool = True,
        max_output: int | None = None,
        spool: bool = False,
    ) -> Self:
        """Check what the user gave.

        Raises
        ------
        TypeError, ValueError, NotADirectoryError, PermissionError
            An argument is wrong; it is named.
        """
        if not isinstance(command, str):
            msg = f"a command is text, not {type(command).__name__}"
            raise TypeError(msg)
        if "\0" in command:
            msg = "a command has a NUL, which bash would drop; write $'\\0', or use stdin"
            raise ValueError(msg)
        if isinstance(stdin, str):
            stdin = stdin.encode()
        if not (stdin is None or isinstance(stdin, bytes) or hasattr(stdin, "read")):
            msg = f"stdin is text, bytes or an open file, not {type(stdin).__name__}"
            raise TypeError(msg)
        return cls(
            command=command,
            timeout=shell.timeout if timeout == DEFAULT else check_seconds("timeout", timeout),
            cwd=None if cwd is None else check_directory(cwd),
            env=check_environment(env or {}),
            stdin=stdin,
            queue=check_flag("queue", queue),
            max_output=(
                shell.max_output if max_output is None else check_count("max_output", max_output, 0)
            ),
            spool=check_flag("spool", spool),
        )

    @property
    def text(self) -> bytes:
        """The command as bash reads it."""
        return self.command.encode("utf-8", "surrogateescape")

    @property
    def may_lose_state(self) -> bool:
        """Whether the shell may end with it in a way that leaves no state, or not the whole."""
        return (
            self.timeout is not None
            or self.cwd is not None
            or bool(self.env)
            or _MAY_END_THE_SHELL.search(self.command) is not None
        )


class ShellDriver:
    """Runs the commands of a shell one after the other, and brings bash back when it has ended.

    Its coroutines run in the loop of the shells; its attributes may be read anywhere.

    Parameters
    ----------
    session_id
        The session.
    options
        Of the shell.
    state
        The state to begin with; empty for what is kept with the session.
    load, save
        Read and write the state that is kept with the session.

    Attributes
    ----------
    closed
        Why it takes no commands any more; empty while it does.
    command
        The command that runs.
    waiting
        Number of commands that run or wait.
    last
        The last result.
    """

    def __init__(
        self,
        session_id: str,
        options: ShellOptions,
        *,
        state: bytes = b"",
        load: Callable[[], bytes] = bytes,
        save: Callable[[bytes], object] = bytes,
    ) -> None:
        self.session_id = session_id
        self.options = options
        self.closed = ""
        self.command: Command | None = None
        self.waiting = 0
        self.last: ShellResult | None = None
        self._state = State(state)
        self._is_loaded = bool(state)
        self._came_back: str | None = None
        self._has_trap = False
        self._load, self._save = load, save
        self._kept = b""
        self._turn = asyncio.Lock()
        self._bash: Bash | None = None
        self._code: BashCode | None = None
        self._number = 0
        self._is_restored = False
        self._interrupted: set[int] = set()
        self._late: deque[tuple[int, list[DetachedOutput]]] = deque()
        self._idle: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- commands ------------------------------------------------------------------------------

    async def execute(
        self,
        request: CommandRequest,
        on_output: OnOutput,
        on_begin: Callable[[Bash], None] | None = None,
    ) -> ShellResult:
        """Run a command when its turn comes; cancelling interrupts it.

        Raises
        ------
        ShellBusy, ShellClosed, StartFailed
            As for `Shell.run`.
        """
        if not request.queue and self.waiting:
            raise ShellBusy(self.session_id, self.waiting)
        self.waiting += 1
        try:
            async with self._turn:
                bash = await self._present()
                if bash.is_dirty and self._may_lose_state(bash, request):
                    await self._checkpoint(bash)
                    bash = await self._present()
                try:
                    result = await self._run(bash, request, on_output, on_begin)
                finally:
                    self.command = None
                    self._interrupted.discard(self._number)
                    self._schedule_checkpoint()
        finally:
            self.waiting -= 1
        self.last = result
        self._report(request, result)
        if bash.has_ended and self.closed:
            raise ShellClosed(self.session_id, self.closed)
        return result

    def _may_lose_state(self, bash: Bash, request: CommandRequest) -> bool:
        """Whether bash may end with a command in a way that leaves no state, or not the whole."""
        return (
            request.may_lose_state
            or self.options.checkpoint == "always"
            or self._has_trap  # perhaps for EXIT, in place of the driver's
            or bash.state.exit_trap != b""
        )

    async def _run(
        self,
        bash: Bash,
        request: CommandRequest,
        on_output: OnOutput,
        on_begin: Callable[[Bash], None] | None,
    ) -> ShellResult:
        self._number += 1
        began = time.monotonic()
        with self._spool(request) as spool:
            captures = {
                "stdout": Capture(request.max_output, spool),
                "stderr": Capture(request.max_output),
            }

            def take(stream: StreamName, data: bytes) -> None:
                captures[stream].add(data)
                on_output(stream, data)

            command = Command(bash, self._number)
            try:
                command.begin(
                    request.text,
                    cwd=request.cwd,
                    env=request.env,
                    stdin=request.stdin,
                    on_output=take,
                )
            except OSError as error:
                raise StartFailed("the command", explain(error)) from error
            self.command = command
            if on_begin is not None:
                on_begin(bash)
            try:
                ending = await self._await_end(command, bash, request.timeout)
            except NotRun:
                raise await self._not_run(bash, request) from None
            finally:
                await command.finish()
        if ending.has_left:
            if self.closed:
                raise ShellClosed(self.session_id, self.closed)
            ending.status = await bash.exit_status()
        elif command.detach():
            self._keep_late(command)
        is_interrupted = not ending.timed_out and self._number in self._interrupted
        status = TIMED_OUT if ending.timed_out else INTERRUPTED if is_interrupted else ending.status
        bash.status = status
        self._has_trap = self._has_trap or "trap" in request.command
        is_back, lost = self._came_back is not None, [self._came_back or ""]
        self._came_back = None
        if ending.has_left:
            lost += [await self._replace(bash, status), self._came_back or ""]
            self._came_back = None
        is_restored, self._is_restored = self._is_restored, False
        out, err = captures["stdout"], captures["stderr"]
        return ShellResult(
            number=self._number,
            command=request.command,
            returncode=status,
            stdout_bytes=out.take(),
            stderr_bytes=err.take(),
            stdout_total=out.total,
            stderr_total=err.total,
            timed_out=ending.timed_out,
            interrupted=is_interrupted,
            restarted=is_back or (ending.has_left and not self.closed),
            restored=is_restored,
            lost="; ".join(filter(None, lost)),
            detached=bool(command.late),
            duration=time.monotonic() - began,
            cwd=self.cwd,
            spool=None if spool is None else Path(spool.name),
            correlation_id=request.correlation,
        )

    def _spool(
        self, request: CommandRequest
    ) -> contextlib.AbstractContextManager[IO[bytes] | None]:
        if not request.spool or self._code is None:
            return contextlib.nullcontext()
        return (self._code.folder / f"output.{self._number}").open("wb")

    async def _await_end(self, command: Command, bash: Bash, timeout: float | None) -> _Ending:
        """Wait for the end of a command; interrupt it at its time-out, or if this is cancelled."""
        ending = _Ending()
        try:
            try:
                async with asyncio.timeout(timeout):
                    ending.status = await command.wait()
            except TimeoutError:
                ending.timed_out = True
                await command.interrupt()
                ending.status = await command.wait()
            except asyncio.CancelledError:
                try:
                    with contextlib.suppress(EOFError, NotRun, Wedged):
                        await run_shielded(self._give_up(command))
                finally:
                    command.discard()
                raise
        except Wedged:
            await bash.give_up()
            ending.has_left = True
        except EOFError:
            ending.has_left = True
        return ending

    @staticmethod
    async def _give_up(command: Command) -> None:
        await command.interrupt()
        await command.wait()

    @staticmethod
    async def _not_run(bash: Bash, request: CommandRequest) -> StartFailed:
        if not request.env:  # the driver's own are readonly: no command would run any more
            await bash.give_up()
        names = ", ".join(request.env) or "the driver's own"
        cause = f"bash could not set its environment variables ({names}); is one readonly?"
        return StartFailed("the command", cause)

    def interrupt(self, number: int) -> None:
        """Interrupt a command, if it still runs."""
        command = self.command
        if command is not None and command.number == number and number not in self._interrupted:
            self._interrupted.add(number)
            self._spawn(command.interrupt())

    async def settled(self) -> None:
        """Wait until no command runs."""
        async with self._turn:
            pass

    def _keep_late(self, command: Command) -> None:
        self._late.append((command.number, command.late))
        while len(self._late) > MAX_LATE:
            for output in self._late.popleft()[1]:
                output.forget()  # it is read on, so that its writer does not wait

    def late_output(self, number: int) -> bytes:
        """Return the end of what background processes of a command have written after its end."""
        for known, outputs in list(self._late):
            if known == number:
                return b"".join(bytes(output.tail) for output in outputs)
        return b""

    def _report(self, request: CommandRequest, result: ShellResult) -> None:
        """Emit the event of a command, without its text."""
        if request.span is None:
            return
        outcome = "timeout" if result.timed_out else "cancelled" if result.interrupted else "ok"
        seconds = time.monotonic() - request.asked
        attributes: dict[str, Scalar] = {
            "session": self.session_id,
            "outcome": "error" if outcome == "ok" and not result.ok else outcome,
            "returncode": result.returncode,
            "correlation_id": request.correlation,
            "queue_seconds": max(0.0, seconds - result.duration),
            "run_seconds": result.duration,
        }
        telemetry.emit("shell", attributes, seconds=seconds, caller=request.span)

    # -- bash ----------------------------------------------------------------------------------

    @property
    def cwd(self) -> str:
        """Its working directory after the last command."""
        bash = self._bash
        return self.options.cwd if bash is None or not bash.cwd else bash.cwd

    @property
    def pid(self) -> int | None:
        """The process id of bash; None while there is none."""
        return None if self._bash is None else self._bash.pid

    @property
    def tag(self) -> str:
        """The variable by which the processes of a command are known."""
        return "" if self._code is None else self._code.tag

    async def _present(self) -> Bash:
        """Return the running bash; start one if there is none, or if it has ended."""
        if self.closed:
            raise ShellClosed(self.session_id, self.closed)
        if self._idle is not None:
            self._idle.cancel()
        bash = self._bash
        if bash is not None and not bash.has_ended:
            if not bash.has_files and not self._folder_is_there:
                await in_thread(self._remake_folder)
            return bash
        if bash is not None:  # it has ended between two commands, or with a cancelled one
            started = await self._restart(bash)
            self._came_back = "; ".join(filter(None, (bash.lost, self._came_back)))
            return started
        await self._load_state()
        return await self._start()

    async def _load_state(self) -> None:
        """Read what is kept with the session, unless that is known."""
        if self._is_loaded or self.options.checkpoint == "never":
            return
        self._state = State(await in_thread(self._load))
        self._is_loaded = True
        self._is_restored = bool(self._state.code)

    @property
    def _folder_is_there(self) -> bool:
        return self._code is not None and self._code.folder.is_dir()

    def _remake_folder(self) -> BashCode:
        """Make the folder for its files, again if it was removed with the login session.

        Raises
        ------
        StartFailed
            It cannot be made.
        """
        try:
            if self._code is None:
                self._code = BashCode(make_folder("shell"), secrets.token_hex(4))
            else:
                remake_folder(self._code.folder)
            self._code.write_files()
        except OSError as error:
            raise StartFailed(self._label, explain(error)) from error
        return self._code

    @property
    def _label(self) -> str:
        return f"shell of session {self.session_id}"

    async def _start(self) -> Bash:
        """Start bash with the state that is known.

        Raises
        ------
        ShellClosed
            The shell was closed meanwhile.
        StartFailed
            It could not be started.
        """
        label, program = self._label, shutil.which("bash")
        if program is None:
            raise StartFailed(label, "there is no bash on PATH; install it")
        code = self._code
        if code is None or not self._folder_is_there:
            code = await in_thread(self._remake_folder)
        while True:
            bash = Bash(code, Registry())
            try:
                await bash.start(
                    program,
                    label=label,
                    env=self.options.environment(),
                    cwd=self.options.cwd,
                    state=self._state,
                    grace=GRACE,
                )
            except (EOFError, TimeoutError, Wedged) as error:
                await run_shielded(bash.end(0.0))
                if not self._state.code:
                    cause = "bash ended, or did not answer, before its first command"
                    raise StartFailed(label, cause) from error
                self._leave_out()
            except OSError as error:
                await run_shielded(bash.end(0.0))
                raise StartFailed(label, explain(error)) from error
            except BaseException:
                await run_shielded(bash.end(0.0))
                raise
            else:
                break
        self._bash = bash
        bash.is_dirty = bool(self._state.code)  # it is not known of which parts the state consists
        if self.closed:
            raise ShellClosed(self.session_id, self.closed)
        return bash

    def _leave_out(self) -> None:
        """Leave out of the state what bash cannot begin with: its settings, or all of it."""
        rest = self._state.without_settings()
        if rest.code == self._state.code:
            rest, self._came_back = State(), "the whole state, with which bash does not start"
        else:
            self._came_back = "traps and options, with which bash takes no commands"
        logger.warning("%s: %s could not be brought back", self._label, self._came_back)
        self._state = rest

    async def _restart(self, ended: Bash) -> Bash:
        """Start bash again with the state that the ended one has left, or had at its checkpoint."""
        left = ended.state_at_exit()
        self._state = ended.state if left is None else left
        self._bash = None
        self._spawn(ended.end(0.0))
        bash = await self._start()
        bash.status = ended.status
        bash.is_dirty = True  # what is kept with the session is older
        return bash

    async def _replace(self, ended: Bash, status: int) -> str:
        """Start bash again after a command that has ended it; return what is lost."""
        if self.options.on_exit == "terminate":
            self.closed = f"its command has ended it with status {status}"
            await in_thread(self._save, b"")
            self._spawn(self.close(self.closed))
            return ""
        await self._restart(ended)
        return ended.lost

    # -- state ---------------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Keep the state with the session now."""
        async with self._turn:
            await self._checkpoint(await self._present())

    async def _checkpoint(self, bash: Bash) -> None:
        await bash.take_snapshot()
        if bash.is_dirty:
            return
        self._has_trap = False
        code = bash.state.code
        if self.options.checkpoint == "never" or code == self._kept or len(code) > MAX_STATE_BYTES:
            return
        try:
            await in_thread(self._save, code)
        except (OSError, SnakepitError) as error:  # its command may run all the same
            logger.warning("the state of the %s is not kept: %s", self._label, error)
        else:
            self._kept = code

    def _schedule_checkpoint(self) -> None:
        if self.options.checkpoint == "never" or self.closed:
            return
        seconds = 0.0 if self.options.checkpoint == "always" else IDLE_SECONDS
        loop = asyncio.get_running_loop()
        self._idle = loop.call_later(seconds, lambda: self._spawn(self._checkpoint_if_idle()))

    async def _checkpoint_if_idle(self) -> None:
        if self.waiting or self._turn.locked():
            return
        async with self._turn:
            bash = self._bash
            if bash is None or bash.has_ended or self.closed:
                return
            if bash.is_dirty or bash.state.code != self._kept:
                await self._checkpoint(bash)

    async def state(self, *, is_exact: bool = False) -> bytes:
        """Return code that brings the shell's state back.

        Parameters
        ----------
        is_exact
            Whether to wait for the command that runs; otherwise the state may be that before it.
        """
        if not is_exact and self.waiting:  # a checkpoint may take the turn as well, but not long
            bash = self._bash
            return (self._state if bash is None else bash.state).code
        async with self._turn:
            if self._bash is None and not self.closed:
                await self._load_state()
                return self._state.code
            bash = await self._present()
            if bash.is_dirty:
                await bash.take_snapshot()
            self._schedule_checkpoint()  # `_present` has cancelled the one that was due
            return bash.state.code

    # -- the end -------------------------------------------------------------------------------

    async def close(self, because: str, *, keep: bool = True) -> None:
        """End bash and everything that it started; return when that is verified.

        Parameters
        ----------
        because
            Why, for those who use it all the same.
        keep
            Whether the state of a shell that runs no command is kept with the session.
        """
        self.closed = self.closed or because
        if self._idle is not None:
            self._idle.cancel()
        if keep and not self._turn.locked():
            async with self._turn:
                await self._keep_last()
        try:
            await self._end_bash()
        finally:
            async with self._turn:  # what was under way has seen that it is closed
                await self._end_bash()
            own = asyncio.current_task()
            await asyncio.gather(*(t for t in self._tasks if t is not own), return_exceptions=True)
            for _, outputs in self._late:
                for output in outputs:
                    output.close()
            self._late.clear()
            code, self._code = self._code, None
            if code is not None:
                remove_folder(code.folder)

    async def _keep_last(self) -> None:
        """Keep the state of a shell that is closed."""
        bash = self._bash
        if bash is None or bash.has_ended or self.options.checkpoint == "never":
            return
        if bash.is_dirty:
            await bash.take_snapshot(CLOSE_SECONDS)
        code = bash.state.code
        if not bash.is_dirty and code != self._kept and len(code) <= MAX_STATE_BYTES:
            try:
                self._save(code)  # an interpreter that exits has no other thread for it
            except (OSError, SnakepitError) as error:
                logger.warning("the state of the %s is not kept: %s", self._label, error)

    async def _end_bash(self) -> None:
        bash = self._bash
        if bash is not None:
            await bash.end(0.0)
            self._bash = None  # not before: another close may not remove its folder meanwhile

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._note_failure)

    def _note_failure(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("%s: %s", self._label, error)


@dataclass(slots=True)
class _Ending:
    """How a command has ended.

    Attributes
    ----------
    status
        Its status, unless bash has ended with it.
    timed_out
        At its time-out.
    has_left
        Bash has ended with it.
    """

    status: int = 1
    timed_out: bool = False
    has_left: bool = False


def check_directory(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a directory.

    Raises
    ------
    NotADirectoryError, PermissionError
        It is none, or may not be entered.
    """
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        msg = f"cwd {str(folder)!r} is not a directory"
        raise NotADirectoryError(msg)
    if not os.access(folder, os.X_OK):
        msg = f"cwd {str(folder)!r} may not be entered"
        raise PermissionError(msg)
    return str(folder)


def explain(error: OSError) -> str:
    """Return what an error of the system says, with its file."""
    text = error.strerror or str(error)
    return f"{text}: {error.filename}" if error.filename else text


def _one_of(name: str, value: str, values: tuple[str, ...]) -> Any:
    if value not in values:
        msg = f"{name} {value!r} is not known; it is one of {', '.join(map(repr, values))}"
        raise ValueError(msg)
    return value
