"""The public class `Shell`: the shell of a session, for threads and for event loops."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import IO, Any, Generic, NoReturn, TypeVar

from ..errors import CommandFailed, ShellClosed
from ..locks import Lock
from ..processes.concurrency import LoopThread
from ..tracebacks import hide_own_frames, hides_own_frames
from .bash import Bash
from .driver import DEFAULT, CommandRequest, ShellDriver
from .results import ShellChunk, ShellResult, StreamName

STREAM_BYTES = 1 << 20
"""Bytes of a stream that wait for their reader before its command has to wait."""

LOOP_LOOK_SECONDS = 1.0
"""Seconds between looks whether the thread that does the work of a caller lives."""

ENDED = "its process ends"

T = TypeVar("T")


@hides_own_frames
class Shell:
    """A persistent bash of a session: working directory, variables, functions and options stay.

    It starts with its first command. Its methods may be called from any thread; commands run one at
    a time, in the order in which they came. State is isolated from that of other sessions; files
    and processes are not: it is no security boundary.

    Parameters
    ----------
    driver
        Drives it.
    loop_thread
        Where the driver runs.
    fork
        Opens a copy of its session with a state.
    """

    def __init__(
        self,
        driver: ShellDriver,
        loop_thread: LoopThread,
        fork: Callable[[str, bytes], Shell],
    ) -> None:
        self._driver = driver
        self._loop_thread = loop_thread
        self._fork = fork

    def __reduce__(self) -> NoReturn:
        msg = (
            "a Shell stays in its process; in a worker, snakepit_kernel.context().shell is that of "
            "the session"
        )
        raise TypeError(msg)

    # -- running commands ----------------------------------------------------------------------

    def run(
        self,
        command: str,
        *,
        timeout: float | str | None = DEFAULT,
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
            Seconds that it may run; then it is ended, and its status is 124. None for no limit.
            Default: that of the shell.
        cwd
            Working directory of this command alone.
        env
            Environment variables of this command alone; None stands for one that is not set.
        stdin
            What it reads from its standard input: text, bytes, or an open file. Default: nothing.
        check
            Whether a status other than 0 raises `CommandFailed`.
        queue
            Whether it waits for earlier commands; else `ShellBusy` is raised if there are any.
        max_output
            Bytes of each output stream that the result keeps.
        spool
            Whether all of standard output is written to a file as well: ``result.spool``.

        Raises
        ------
        CommandFailed, ShellBusy
            See above.
        ShellClosed
            It takes no commands any more.
        StartFailed
            Bash could not be started, or could not run the command.
        TypeError, ValueError, NotADirectoryError, PermissionError
            An argument is wrong; it is named. Nothing ran.

        Notes
        -----
        Ctrl-C interrupts the command; the shell keeps its state.
        """
        request = self._request(
            command,
            timeout=timeout,
            cwd=cwd,
            env=env,
            stdin=stdin,
            queue=queue,
            max_output=max_output,
            spool=spool,
        )
        return _checked(self._wait(partial(self._driver.execute, request, _ignore)), check=check)

    async def arun(self, command: str, *, check: bool = False, **options: Any) -> ShellResult:
        """Run a command as `run` does, without blocking the event loop.

        Cancelling the task interrupts the command.
        """
        call = self._call(partial(self._driver.execute, self._request(command, **options), _ignore))
        call.start()
        return _checked(await call.await_result(), check=check)

    def stream(self, command: str, **options: Any) -> Iterator[ShellChunk]:
        """Run a command, and yield what it writes as it comes; `last` is its result afterwards.

        Leaving the loop early interrupts the command. Parameters are those of `run`, without
        ``check``.
        """
        return self._stream(self._request(command, **options))

    @hides_own_frames
    def _stream(self, request: CommandRequest) -> Iterator[ShellChunk]:
        chunks = _Chunks(self._loop_thread)
        work = partial(self._driver.execute, request, chunks.put, chunks.follow)
        call = self._call(work, chunks.finish)
        try:
            call.start()
            while (chunk := chunks.get()) is not None:
                yield chunk
            call.result()
        finally:
            call.abandon()
            call.wait()

    def astream(self, command: str, **options: Any) -> AsyncIterator[ShellChunk]:
        """Run a command as `stream` does, without blocking the event loop."""
        return self._astream(self._request(command, **options))

    async def _astream(self, request: CommandRequest) -> AsyncIterator[ShellChunk]:
        chunks = _Chunks(self._loop_thread, asyncio.get_running_loop())
        work = partial(self._driver.execute, request, chunks.put, chunks.follow)
        call = self._call(work, chunks.finish)
        try:
            call.start()
            while (chunk := await chunks.aget()) is not None:
                yield chunk
            await call.await_result()
        except BaseException as error:
            hide_own_frames(error)
            raise
        finally:
            call.abandon()
            await call.await_end()

    async def settled(self) -> None:
        """Wait until no command runs."""
        await asyncio.wrap_future(self._loop_thread.ask(self._driver.settled()))

    def interrupt(self) -> bool:
        """Interrupt the running command: its status is 130. Return whether one ran."""
        command = self._driver.command
        if command is None:
            return False
        self._loop_thread.soon(self._driver.interrupt, command.number)
        return True

    # -- looking -------------------------------------------------------------------------------

    @property
    def session_id(self) -> str:
        """The session."""
        return self._driver.session_id

    @property
    def last(self) -> ShellResult | None:
        """The result of the last command that has ended."""
        return self._driver.last

    @property
    def cwd(self) -> str:
        """Its working directory after the last command."""
        return self._driver.cwd

    @property
    @hides_own_frames
    def env(self) -> dict[str, str]:
        """The variables that it exports."""
        entries = self.run("\\command env -0").stdout_bytes.split(b"\0")
        pairs = (os.fsdecode(entry).partition("=") for entry in entries if entry)
        return {name: value for name, _, value in pairs if name != self._driver.tag}

    @property
    def is_busy(self) -> bool:
        """Whether a command runs."""
        return self._driver.command is not None

    @property
    def queue_length(self) -> int:
        """Number of commands that wait."""
        return max(0, self._driver.waiting - self.is_busy)

    @property
    def is_open(self) -> bool:
        """Whether it takes commands."""
        return not self._driver.closed

    @property
    def pid(self) -> int | None:
        """The process id of bash; None while there is none."""
        return self._driver.pid

    def late_output(self, number: int) -> bytes:
        """Return the end of what background processes of a command have written after its end.

        Parameters
        ----------
        number
            ``result.number`` of the command; one of the last 16 with ``result.detached``.
        """
        return self._driver.late_output(number)

    def __repr__(self) -> str:
        state = self._driver.closed or ("busy" if self.is_busy else "idle")
        return f"<Shell of session {self.session_id!r}: {state}>"

    # -- state and end -------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Keep its state with the session now, as an idle shell does by itself."""
        self._wait(self._driver.checkpoint)

    def fork(self, session_id: str) -> Shell:
        """Return the shell of a new session: a copy of this session, and of its shell.

        The copy has the same working directory, variables, functions, aliases and options.

        Raises
        ------
        ValueError
            There is a session of that name.
        """
        return self._fork(session_id, self._wait(partial(self._driver.state, is_exact=True)))

    def close(self) -> None:
        """End the shell and everything that it started; return when that is verified.

        A command that runs is ended. It may be called again. What is kept with the session stays:
        the next shell of the session begins with it.
        """
        if self._loop_thread.is_open and self._loop_thread.is_here:
            self._loop_thread.ask(self._driver.close("it was closed")).result()

    # -- details -------------------------------------------------------------------------------

    def _request(self, command: str, **options: Any) -> CommandRequest:
        if self._driver.closed:
            raise ShellClosed(self.session_id, self._driver.closed)
        if not self._loop_thread.is_here:
            raise ShellClosed(self.session_id, "it is that of a process which has forked this one")
        return CommandRequest.checked(self._driver.options, command, **options)

    def _wait(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        call = self._call(work)
        try:
            call.start()
            return call.result()
        finally:  # Ctrl-C may have come at any moment: nothing must go on unseen
            call.abandon()
            call.wait()

    def _call(
        self, work: Callable[[], Coroutine[Any, Any, T]], at_end: Callable[[], object] = int
    ) -> _Call[T]:
        return _Call(self._driver, self._loop_thread, work, at_end)


class _Call(Generic[T]):
    """Work in the loop of the shells for a caller elsewhere, which may be interrupted meanwhile.

    Parameters
    ----------
    driver
        Of the shell.
    loop_thread
        Where it runs.
    work
        Begins the work there.
    at_end
        Is called there when it has ended.
    """

    def __init__(
        self,
        driver: ShellDriver,
        loop_thread: LoopThread,
        work: Callable[[], Coroutine[Any, Any, T]],
        at_end: Callable[[], object] = int,
    ) -> None:
        self._driver = driver
        self._loop_thread = loop_thread
        self._work = work
        self._at_end = at_end
        self._task: asyncio.Task[T] | None = None
        self._is_started = False
        self._is_abandoned = False
        self._result: Future[T] = Future()
        self._result.set_running_or_notify_cancel()

    def start(self) -> None:
        """Begin it.

        Raises
        ------
        ShellClosed
            The loop is closed.
        """
        self._is_started = True
        try:
            self._loop_thread.soon(self._begin)
        except RuntimeError:
            self._is_started = False
            raise ShellClosed(self._driver.session_id, ENDED) from None

    def _begin(self) -> None:
        if self._task is None:
            self._task = self._loop_thread.spawn(self._work())
            self._task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            reason = self._driver.closed or ("it was cancelled" if self._is_abandoned else ENDED)
            self._result.set_exception(ShellClosed(self._driver.session_id, reason))
        elif (error := task.exception()) is not None:
            self._result.set_exception(error)
        else:
            self._result.set_result(task.result())
        self._at_end()

    def abandon(self) -> None:
        """Cancel it, if it has not ended."""
        self._is_abandoned = True
        if self._is_started and not self._result.done():
            with contextlib.suppress(RuntimeError):  # the loop has ended, and it with the loop
                self._loop_thread.soon(self._cancel)

    def _cancel(self) -> None:
        self._begin()  # an interrupted caller may not have come so far
        if self._task is not None:
            self._task.cancel()

    def wait(self) -> None:
        """Wait for its end."""
        while self._is_started and not wait([self._result], LOOP_LOOK_SECONDS).done:
            if not self._loop_thread.is_here and not self._result.done():
                raise ShellClosed(self._driver.session_id, ENDED)

    def result(self) -> T:
        """Wait for its end; return what it returns."""
        self.wait()
        return self._result.result()

    async def await_end(self) -> None:
        """Wait for its end, in an event loop of the caller's."""
        loop, is_over = asyncio.get_running_loop(), asyncio.Event()

        def tell(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # that loop was closed meanwhile
                loop.call_soon_threadsafe(is_over.set)

        self._result.add_done_callback(tell)
        await is_over.wait()

    async def await_result(self) -> T:
        """Wait as `result` does; a cancellation cancels it, and is raised when it has ended."""
        try:
            await self.await_end()
        except asyncio.CancelledError:
            self.abandon()
            await self.await_end()
            raise
        except BaseException:  # the caller's loop was closed
            self.abandon()
            raise
        return self._result.result()


class _Chunks:
    """Chunks of a stream on their way from the loop of the shells to their reader."""

    def __init__(
        self, loop_thread: LoopThread, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self._loop_thread = loop_thread
        self._loop = loop
        self._chunks: deque[ShellChunk] = deque()
        self._put = 0  # bytes: counted in the loop of the shells alone
        self._taken = 0  # counted by the reader alone
        self._is_paused = False
        self._is_over = False
        self._bash: Bash | None = None
        self._gate = Lock()
        self._gate.acquire()
        self._event = asyncio.Event()

    def follow(self, bash: Bash) -> None:
        self._bash = bash

    def put(self, stream: StreamName, data: bytes) -> None:
        self._put += len(data)
        self._chunks.append(ShellChunk(stream, data))
        if self._is_full and self._bash is not None and not self._is_paused:
            self._is_paused = True
            for output in self._bash.outputs:
                output.pause()
            if not self._is_full:  # the reader took it meanwhile, and did not see the pause
                self._resume()
        self._wake()

    @property
    def _is_full(self) -> bool:
        return self._put - self._taken > STREAM_BYTES

    def finish(self) -> None:
        self._is_over = True
        self._wake()

    def _wake(self) -> None:
        # It is open already; or the reader's loop has ended.
        with contextlib.suppress(RuntimeError):
            if self._loop is None:
                self._gate.release()
            else:
                self._loop.call_soon_threadsafe(self._event.set)

    def _pop(self) -> ShellChunk:
        chunk = self._chunks.popleft()
        self._taken += len(chunk.data)
        if self._is_paused and not self._is_full:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop_thread.soon(self._resume)
        return chunk

    def _resume(self) -> None:
        if self._is_paused and self._bash is not None and not self._is_over:
            self._is_paused = False
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
            self._event.clear()
            if self._chunks:
                break
            if self._is_over:
                return None
            await self._event.wait()
        return self._pop()


def _checked(result: ShellResult, *, check: bool) -> ShellResult:
    if check and not result.ok:
        raise CommandFailed(result)
    return result


def _ignore(stream: StreamName, data: bytes) -> None:
    """Only the result is wanted."""
