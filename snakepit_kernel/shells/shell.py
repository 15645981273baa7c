"""The shell of a session: one command at a time, state that stays, and a state that comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, get_args

from ..errors import CommandFailed, ShellBusy, ShellClosed, StartFailed
from ..locks import Lock
from ..paths import working_directory
from ..processes.concurrency import LoopThread, in_thread
from ..processes.run_folders import make_folder, remove_folder
from ..processes.run_registry import Registry
from ..validation import check_count, check_flag, check_seconds
from .bash import Bash, Command, DetachedOutput, NotRun, Wedged
from .bash_code import BashCode, check_environment
from .results import MAX_OUTPUT, Capture, ShellChunk, ShellResult, StreamName

Checkpoint = Literal["always", "idle", "never"]
OnExit = Literal["restart", "terminate"]

TIMED_OUT, INTERRUPTED = 124, 130
"""Exit statuses of commands that were ended."""

IDLE_SECONDS = 0.05
"""Seconds after a command until the state of an idle shell is checkpointed."""

MAX_LATE = 16
"""Commands whose late output is kept."""

STREAM_BYTES = 1 << 20
"""Bytes of a stream that wait for their reader before its command has to wait."""

GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL at the end of a shell."""

_MAY_END_THE_SHELL = re.compile(rb"\b(exec|kill|pkill|killall|trap|ulimit|enable|builtin)\b")


class Shell:
    """A persistent bash of a session: the working directory, variables, functions and options stay.

    It is opened at its first command. Its methods may be called from any thread; commands run one
    at a time, in the order in which they came. State is isolated from other sessions, files and
    processes are not: it is no security boundary.

    Attributes
    ----------
    session_id
        The session.
    last
        The result of the last command that has ended.
    """

    def __init__(
        self,
        session_id: str,
        loop_thread: LoopThread,
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
        max_output: int = MAX_OUTPUT,
        checkpoint: Checkpoint = "idle",
        on_exit: OnExit = "restart",
        label: str = "",
        load: Callable[[], bytes] = bytes,
        save: Callable[[bytes], object] = lambda _: None,
        fork: Callable[[str, bytes, dict[str, Any]], Shell] | None = None,
        state: bytes = b"",
    ) -> None:
        self.session_id = session_id
        self.last: ShellResult | None = None
        self._loop_thread = loop_thread
        self._env = check_environment(env or {})
        self._cwd = working_directory() if cwd is None else check_directory(cwd)
        self._timeout = check_seconds("timeout", timeout)
        self._max_output = check_count("max_output", max_output, 0)
        self._checkpoint = _one_of("checkpoint", checkpoint, get_args(Checkpoint))
        self._on_exit = _one_of("on_exit", on_exit, get_args(OnExit))
        self._label = label or f"shell of {session_id}"
        self._load, self._save, self._fork = load, save, fork
        self._state = state  # to begin with
        self._closed = ""
        self._lock = Lock()
        self._turn: asyncio.Lock | None = None
        self._bash: Bash | None = None
        self._code: BashCode | None = None
        self._command: Command | None = None
        self._number = 0
        self._waiting = 0
        self._is_restored = False
        self._lost = ""
        self._interruptions: set[int] = set()
        self._late: deque[tuple[int, list[DetachedOutput]]] = deque()
        self._idle: asyncio.TimerHandle | None = None
        self._background: set[asyncio.Task[Any]] = set()

    # -- running commands ----------------------------------------------------------------------

    def run(
        self,
        command: str,
        *,
        timeout: float | Literal["default"] | None = "default",
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str | None] | None = None,
        stdin: str | bytes | IO[bytes] | None = None,
        check: bool = False,
        queue: bool = True,
        max_output: int | None = None,
        spool: bool = False,
    ) -> ShellResult:
        """Run a command, and wait for its end.

        Parameters
        ----------
        command
            Any text that bash can run, of any length and with any number of lines.
        timeout
            Seconds that it may run; then it is ended, and the result has status 124. None for no
            limit. Default: the shell's.
        cwd
            Working directory of this command alone.
        env
            Environment variables of this command alone; None stands for one that is not set.
        stdin
            What it reads from its standard input: text, bytes, or an open file. Default: nothing.
        check
            Whether a status other than 0 raises `CommandFailed`.
        queue
            Whether it waits for earlier commands; else `ShellBusy` is raised if one runs.
        max_output
            Bytes of each output stream that the result keeps.
        spool
            Whether all of standard output is written to a file as well: ``result.spool``.

        Raises
        ------
        CommandFailed, ShellBusy, ShellClosed, StartFailed
            See above; the last two when there is no shell for it.
        TypeError, ValueError, NotADirectoryError
            An argument is wrong; it is named. Nothing ran.

        Notes
        -----
        Ctrl-C interrupts the command; the shell keeps its state.
        """
        request = self._request(command, timeout, cwd, env, stdin, queue, max_output, spool)
        return self._checked(self._wait(self._execute(request, _ignore)), check=check)

    async def arun(self, command: str, *, check: bool = False, **options: Any) -> ShellResult:
        """Run a command as `run` does, without blocking the event loop.

        Cancelling the task interrupts the command.
        """
        request = self._request_of(command, options)
        future = self._loop_thread.ask(self._execute(request, _ignore))
        return self._checked(await asyncio.wrap_future(future), check=check)

    def stream(self, command: str, **options: Any) -> Iterator[ShellChunk]:
        """Run a command, and yield what it writes as it comes; `last` is its result afterwards.

        Leaving the loop early interrupts the command. Parameters are those of `run`, without
        ``check``.
        """
        chunks = _Chunks(self._loop_thread)
        request = self._request_of(command, options)
        future = self._loop_thread.ask(self._execute(request, chunks.put, chunks.follow))
        future.add_done_callback(chunks.finish)
        try:
            while (chunk := chunks.get()) is not None:
                yield chunk
            future.result()
        finally:
            if not future.done():
                self._abandon(future)

    async def astream(self, command: str, **options: Any) -> AsyncIterator[ShellChunk]:
        """Run a command as `stream` does, without blocking the event loop."""
        chunks = _Chunks(self._loop_thread, asyncio.get_running_loop())
        request = self._request_of(command, options)
        future = self._loop_thread.ask(self._execute(request, chunks.put, chunks.follow))
        future.add_done_callback(chunks.finish)
        try:
            while (chunk := await chunks.aget()) is not None:
                yield chunk
            await asyncio.wrap_future(future)
        finally:
            if not future.done():
                future.cancel()

    def interrupt(self) -> bool:
        """Interrupt the running command: its status is 130. Return whether one ran."""
        command = self._command
        if command is None:
            return False
        self._loop_thread.soon(self._interrupt, command.number)
        return True

    def _interrupt(self, number: int) -> None:
        command = self._command
        if command is not None and command.number == number and number not in self._interruptions:
            self._interruptions.add(number)
            self._spawn(command.interrupt())

    # -- looking -------------------------------------------------------------------------------

    @property
    def cwd(self) -> str:
        """Its working directory after the last command."""
        bash = self._bash
        return self._cwd if bash is None or not bash.cwd else bash.cwd

    @property
    def env(self) -> dict[str, str]:
        """The variables that it exports."""
        out = self.run("\\command env -0").stdout_bytes
        pairs = (entry.partition(b"=") for entry in out.split(b"\0") if entry)
        own = set() if self._code is None else {self._code.tag}
        names = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
        return {name: value for name, value in names.items() if name not in own}

    @property
    def is_busy(self) -> bool:
        """Whether a command runs."""
        return self._command is not None

    @property
    def queue_length(self) -> int:
        """Number of commands that wait."""
        return max(0, self._waiting - self.is_busy)

    @property
    def is_open(self) -> bool:
        """Whether it takes commands."""
        return not self._closed

    @property
    def pid(self) -> int | None:
        """The process id of bash; None while there is none."""
        return None if self._bash is None else self._bash.pid

    def late_output(self, number: int) -> bytes:
        """Return the end of what background processes of a command have written after its end."""
        for known, outputs in list(self._late):
            if known == number:
                return b"".join(bytes(output.tail) for output in outputs)
        return b""

    def __repr__(self) -> str:
        state = self._closed or ("busy" if self.is_busy else "idle")
        return f"<Shell of session {self.session_id!r}: {state}>"

    # -- state ---------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Keep its state with the session now, as an idle shell does by itself."""
        self._wait(self._checkpoint_now())

    async def _checkpoint_now(self) -> None:
        async with self._turns():
            bash = await self._present()
            await self._take_checkpoint(bash)

    async def _take_checkpoint(self, bash: Bash) -> None:
        await bash.take_snapshot()
        if self._checkpoint != "never" and not bash.is_dirty:
            await in_thread(self._save, bash.state)

    def fork(self, session_id: str) -> Shell:
        """Return the shell of a new session: a copy of this session, and of its shell.

        The copy has the same working directory, variables, functions, aliases and options.

        Raises
        ------
        ValueError
            There is a session of that name.
        """
        if self._fork is None:
            msg = "this shell belongs to no session"
            raise RuntimeError(msg)

        async def take() -> bytes:
            async with self._turns():
                bash = await self._present()
                await bash.take_snapshot()
                return bash.state

        options = {
            "env": self._env,
            "cwd": self._cwd,
            "timeout": self._timeout,
            "max_output": self._max_output,
            "checkpoint": self._checkpoint,
            "on_exit": self._on_exit,
        }
        return self._fork(session_id, self._wait(take()), options)

    async def state(self) -> bytes:
        """Return its latest state, in the loop of the shells, without waiting for a command."""
        bash = self._bash
        if bash is None:
            return await in_thread(self._load) if self._checkpoint != "never" else b""
        if bash.is_dirty and not self._turns().locked():
            async with self._turns():
                await bash.take_snapshot()
        return bash.state

    def base(self) -> tuple[dict[str, str], str]:
        """Return the environment and the working directory that it begins with."""
        environment = {**os.environ}
        for name, value in self._env.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
        return environment, self._cwd

    # -- closing -------------------------------------------------------------------------------

    def close(self, because: str = "it was closed") -> None:
        """End the shell and everything that it started; return when that is verified.

        A command that runs is ended. It may be called again.
        """
        if self._loop_thread.is_open:
            self._loop_thread.ask(self.aclose(because)).result()

    async def aclose(self, because: str = "it was closed") -> None:
        """Do the same, in the loop of the shells."""
        if not self._closed:
            self._closed = because
        if self._idle is not None:
            self._idle.cancel()
        bash, self._bash = self._bash, None
        if bash is not None:
            await bash.end(0.0)
        await asyncio.gather(*self._background, return_exceptions=True)
        for _, outputs in self._late:
            for output in outputs:
                output.close()
        self._late.clear()
        code, self._code = self._code, None
        if code is not None:
            remove_folder(code.folder)

    # -- details -------------------------------------------------------------------------------

    def _wait(self, work: Any) -> Any:
        future = self._loop_thread.ask(work)
        try:
            return future.result()
        except BaseException:
            if not future.done():  # Ctrl-C came here: the command must not go on unseen
                self._abandon(future)
            raise

    def _abandon(self, future: Any) -> None:
        """End a command for which nobody waits any more; wait for its end."""
        future.cancel()
        self._loop_thread.ask(self._settled()).result()

    async def _settled(self) -> None:
        while self._command is not None and self._interruptions:
            await asyncio.sleep(0.002)

    def _turns(self) -> asyncio.Lock:
        if self._turn is None:
            self._turn = asyncio.Lock()
        return self._turn

    def _spawn(self, work: Any) -> None:
        task = self._loop_thread.spawn(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _request_of(self, command: str, options: dict[str, Any]) -> _Request:
        unknown = sorted(set(options) - set(_DEFAULTS))
        if unknown:
            msg = f"a command has no option {unknown[0]!r}; it has {', '.join(_DEFAULTS)}"
            raise TypeError(msg)
        return self._request(command, **{**_DEFAULTS, **options})

    def _request(
        self,
        command: str,
        timeout: float | str | None,
        cwd: str | os.PathLike[str] | None,
        env: Mapping[str, str | None] | None,
        stdin: str | bytes | IO[bytes] | None,
        queue: bool,
        max_output: int | None,
        spool: bool,
    ) -> _Request:
        self._check_open()
        if not isinstance(command, str):
            msg = f"a command is text, not {type(command).__name__}"
            raise TypeError(msg)
        if "\0" in command:
            msg = "a command has a NUL, which bash would drop; write $'\\\\0' or use stdin"
            raise ValueError(msg)
        return _Request(
            command,
            self._timeout if timeout == "default" else check_seconds("timeout", timeout),
            None if cwd is None else check_directory(cwd),
            check_environment(env or {}),
            stdin.encode() if isinstance(stdin, str) else stdin,
            check_flag("queue", queue),
            self._max_output if max_output is None else check_count("max_output", max_output, 0),
            check_flag("spool", spool),
        )

    def _check_open(self) -> None:
        if self._closed:
            raise ShellClosed(self.session_id, self._closed)

    def _checked(self, result: ShellResult, *, check: bool) -> ShellResult:
        if check and not result.ok:
            raise CommandFailed(result)
        return result

    async def _execute(
        self,
        request: _Request,
        on_output: Callable[[StreamName, bytes], None],
        on_begin: Callable[[Bash], None] = lambda _: None,
    ) -> ShellResult:
        turns = self._turns()
        if not request.queue and (turns.locked() or self._waiting):
            raise ShellBusy(self.session_id, self._waiting)
        self._waiting += 1
        try:
            async with turns:
                self._check_open()
                if self._idle is not None:
                    self._idle.cancel()
                bash = await self._present()
                if bash.is_dirty and request.may_lose_state:
                    await self._take_checkpoint(bash)
                result = await self._run_in(bash, request, on_output, on_begin)
        finally:
            self._waiting -= 1
        self.last = result
        return result

    async def _run_in(
        self,
        bash: Bash,
        request: _Request,
        on_output: Callable[[StreamName, bytes], None],
        on_begin: Callable[[Bash], None],
    ) -> ShellResult:
        self._number += 1
        run = _Run(self, bash, request, self._number, on_output)
        try:
            return await run.result(on_begin)
        finally:
            self._command = None
            self._interruptions.discard(self._number)
            self._schedule_checkpoint()

    def _schedule_checkpoint(self) -> None:
        if self._checkpoint == "never" or self._closed:
            return
        seconds = 0.0 if self._checkpoint == "always" else IDLE_SECONDS
        loop = asyncio.get_running_loop()
        self._idle = loop.call_later(seconds, lambda: self._spawn(self._checkpoint_if_idle()))

    async def _checkpoint_if_idle(self) -> None:
        if self._turns().locked() or self._waiting or self._bash is None or self._closed:
            return
        async with self._turns():
            if self._bash is not None and self._bash.is_dirty and not self._bash.has_ended:
                await self._take_checkpoint(self._bash)

    async def _present(self) -> Bash:
        """Return the running bash; start one if there is none, or if it has ended."""
        bash = self._bash
        if bash is not None and not bash.has_ended:
            return bash
        if bash is not None:  # it has ended between two commands
            return await self._restart(bash)
        if self._code is None:
            self._code = BashCode(make_folder("shell"), secrets.token_hex(4))
            self._code.write_files()
        if self._state:
            return await self._start(self._state)
        saved = b"" if self._checkpoint == "never" else await in_thread(self._load)
        self._is_restored = bool(saved)
        return await self._start(saved)

    async def _start(self, state: bytes) -> Bash:
        assert self._code is not None
        program = shutil.which("bash")
        if program is None:
            raise StartFailed(self._label, "there is no bash on PATH; install it")
        if not self._code.folder.is_dir():  # the end of a login session has removed it
            self._code = BashCode(make_folder("shell"), self._code.cookie)
            self._code.write_files()
        bash = Bash(self._code, Registry())
        environment, cwd = self.base()
        try:
            await bash.start(
                program,
                label=self._label,
                env=environment,
                cwd=cwd,
                state=state,
                grace=GRACE,
            )
        except (EOFError, TimeoutError) as error:
            await bash.end(0.0)
            cause = "bash ended, or did not answer, before its first command"
            raise StartFailed(self._label, cause) from error
        except BaseException:
            await bash.end(0.0)
            raise
        self._bash = bash
        return bash

    async def _restart(self, ended: Bash) -> Bash:
        """Start bash again with the state that the ended one has left, or had at its checkpoint."""
        left = ended.state_at_exit()
        self._lost = (
            "what changed since the last checkpoint" if left is None and ended.is_dirty else ""
        )
        status = ended.status
        self._bash = None
        self._spawn(ended.end(0.0))
        bash = await self._start(ended.state if left is None else left)
        bash.status = status
        return bash


class _Request:
    """A command and its options, checked."""

    __slots__ = (
        "command",
        "cwd",
        "env",
        "max_output",
        "queue",
        "spool",
        "stdin",
        "text",
        "timeout",
    )

    def __init__(
        self,
        command: str,
        timeout: float | None,
        cwd: str | None,
        env: dict[str, str | None],
        stdin: bytes | IO[bytes] | None,
        queue: bool,
        max_output: int,
        spool: bool,
    ) -> None:
        self.command = command
        self.text = command.encode("utf-8", "surrogateescape")
        self.timeout = timeout
        self.cwd = cwd
        self.env = env
        self.stdin = stdin
        self.queue = queue
        self.max_output = max_output
        self.spool = spool

    @property
    def may_lose_state(self) -> bool:
        """Whether the shell may end with it in a way that leaves no state."""
        return self.timeout is not None or _MAY_END_THE_SHELL.search(self.text) is not None


_DEFAULTS: dict[str, Any] = {
    "timeout": "default",
    "cwd": None,
    "env": None,
    "stdin": None,
    "queue": True,
    "max_output": None,
    "spool": False,
}


class _Run:
    """One command on its way through a shell."""

    def __init__(
        self,
        shell: Shell,
        bash: Bash,
        request: _Request,
        number: int,
        on_output: Callable[[StreamName, bytes], None],
    ) -> None:
        self._shell = shell
        self._bash = bash
        self._request = request
        self._number = number
        self._forward = on_output
        self._spool: IO[bytes] | None = None
        self._captures: dict[str, Capture] = {}

    async def result(self, on_begin: Callable[[Bash], None]) -> ShellResult:
        request, shell = self._request, self._shell
        began = time.monotonic()
        path = None
        if request.spool:
            assert shell._code is not None
            path = shell._code.folder / f"output.{self._number}"
            self._spool = path.open("wb")
        self._captures = {
            "stdout": Capture(request.max_output, self._spool),
            "stderr": Capture(request.max_output),
        }
        try:
            return await self._run(on_begin, began, path)
        finally:
            if self._spool is not None:
                self._spool.close()

    async def _run(
        self, on_begin: Callable[[Bash], None], began: float, path: Path | None
    ) -> ShellResult:
        request, shell, bash = self._request, self._shell, self._bash
        timed_out = False
        command = bash.begin(
            self._number,
            request.text,
            cwd=request.cwd,
            env=request.env,
            stdin=request.stdin,
            on_output=self._on_output,
        )
        shell._command = command
        on_begin(bash)
        restarted = False
        try:
            try:
                async with asyncio.timeout(request.timeout):
                    status = await command.wait()
            except TimeoutError:
                timed_out = True
                await command.interrupt()
                status = await command.wait()
            except asyncio.CancelledError:
                shell._interruptions.add(self._number)
                with contextlib.suppress(EOFError, Wedged):
                    await command.interrupt()
                    await command.wait()
                raise
        except Wedged:
            bash.kill()
            restarted, status = True, 1
        except EOFError:
            restarted, status = True, 1
        interrupted = self._number in shell._interruptions
        try:
            await command.finish()
        except NotRun:
            names = ", ".join(request.env) or "a variable of the driver"
            cause = f"bash could not set its environment ({names}); is one of these readonly?"
            raise StartFailed("the command", cause) from None
        if restarted:
            status = await bash.exit_status()
        elif command.detach():
            self._keep_late(command)
        if timed_out:
            status = TIMED_OUT
        elif interrupted:
            status = INTERRUPTED
        bash.status = status
        lost = ""
        if restarted:
            if shell._closed:
                raise ShellClosed(shell.session_id, shell._closed)
            if shell._on_exit == "terminate":
                shell._closed = f"its command ended it with status {status}"
                shell._spawn(shell.aclose())
            else:
                await shell._restart(bash)
                lost = shell._lost
        is_restored, shell._is_restored = shell._is_restored, False
        out, err = self._captures["stdout"], self._captures["stderr"]
        return ShellResult(
            number=self._number,
            command=request.command,
            returncode=status,
            stdout_bytes=out.take(),
            stderr_bytes=err.take(),
            stdout_total=out.total,
            stderr_total=err.total,
            timed_out=timed_out,
            interrupted=interrupted and not timed_out,
            restarted=restarted,
            restored=is_restored,
            lost=lost,
            detached=bool(command.late),
            duration=time.monotonic() - began,
            cwd=shell.cwd,
            spool=path,
        )

    def _on_output(self, stream: StreamName, data: bytes) -> None:
        self._captures[stream].add(data)
        self._forward(stream, data)

    def _keep_late(self, command: Command) -> None:
        late = self._shell._late
        late.append((command.number, command.late))
        while len(late) > MAX_LATE:
            for output in late.popleft()[1]:
                output.tail.clear()  # it is read on, so that its writer does not wait


class _Chunks:
    """Chunks of a stream on their way from the loop of the shells to their reader."""

    def __init__(
        self, loop_thread: LoopThread, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self._loop_thread = loop_thread
        self._loop = loop
        self._chunks: deque[ShellChunk] = deque()
        self._size = 0
        self._is_over = False
        self._bash: Bash | None = None
        self._gate = Lock()
        self._gate.acquire()
        self._event = asyncio.Event()

    def follow(self, bash: Bash) -> None:
        self._bash = bash

    def put(self, stream: StreamName, data: bytes) -> None:
        self._size += len(data)
        self._chunks.append(ShellChunk(stream, data))
        if self._size > STREAM_BYTES and self._bash is not None:
            for output in self._bash.outputs:
                output.pause()
        self._wake()

    def finish(self, _: object) -> None:
        self._is_over = True
        self._wake()

    def _wake(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the reader's loop has ended
                self._loop.call_soon_threadsafe(self._event.set)
        else:
            with contextlib.suppress(RuntimeError):  # it is open already
                self._gate.release()

    def _pop(self) -> ShellChunk | None:
        chunk = self._chunks.popleft()
        before = self._size
        self._size -= len(chunk.data)
        if before > STREAM_BYTES >= self._size:
            with contextlib.suppress(RuntimeError):
                self._loop_thread.soon(self._resume)
        return chunk

    def _resume(self) -> None:
        if self._bash is not None and not self._is_over:
            for output in self._bash.outputs:
                output.resume()

    def get(self) -> ShellChunk | None:
        while not self._chunks:
            if self._is_over and not self._chunks:
                return None
            self._gate.acquire()
        return self._pop()

    async def aget(self) -> ShellChunk | None:
        while not self._chunks:
            if self._is_over and not self._chunks:
                return None
            self._event.clear()
            if not self._chunks and not self._is_over:
                await self._event.wait()
        return self._pop()


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


def _one_of(name: str, value: Any, values: tuple[str, ...]) -> Any:
    if value not in values:
        msg = f"{name} {value!r} is not known; it is one of {', '.join(map(repr, values))}"
        raise ValueError(msg)
    return value


def _ignore(stream: StreamName, data: bytes) -> None:
    """Only the result is wanted."""
