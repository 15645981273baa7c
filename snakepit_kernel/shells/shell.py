"""The public class `Shell`: the shell of a session, for threads and for event loops."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from typing import IO, Any, TypeVar

from ..errors import CommandFailed, ShellClosed
from ..locks import Lock
from ..processes.concurrency import LoopThread
from .bash import Bash
from .driver import DEFAULT, CommandRequest, ShellDriver
from .results import ShellChunk, ShellResult, StreamName

STREAM_BYTES = 1 << 20
"""Bytes of a stream that wait for their reader before its command has to wait."""

T = TypeVar("T")


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
        return _checked(self._wait(self._driver.execute(request, _ignore)), check=check)

    async def arun(self, command: str, *, check: bool = False, **options: Any) -> ShellResult:
        """Run a command as `run` does, without blocking the event loop.

        Cancelling the task interrupts the command.
        """
        request = self._request(command, **options)
        future = self._loop_thread.ask(self._driver.execute(request, _ignore))
        return _checked(await asyncio.wrap_future(future), check=check)

    def stream(self, command: str, **options: Any) -> Iterator[ShellChunk]:
        """Run a command, and yield what it writes as it comes; `last` is its result afterwards.

        Leaving the loop early interrupts the command. Parameters are those of `run`, without
        ``check``.
        """
        return self._stream(self._request(command, **options))

    def _stream(self, request: CommandRequest) -> Iterator[ShellChunk]:
        chunks = _Chunks(self._loop_thread)
        future = self._loop_thread.ask(self._driver.execute(request, chunks.put, chunks.follow))
        future.add_done_callback(chunks.finish)
        try:
            while (chunk := chunks.get()) is not None:
                yield chunk
            future.result()
        finally:
            if not future.done():
                self._abandon(future)

    def astream(self, command: str, **options: Any) -> AsyncIterator[ShellChunk]:
        """Run a command as `stream` does, without blocking the event loop."""
        return self._astream(self._request(command, **options))

    async def _astream(self, request: CommandRequest) -> AsyncIterator[ShellChunk]:
        chunks = _Chunks(self._loop_thread, asyncio.get_running_loop())
        future = self._loop_thread.ask(self._driver.execute(request, chunks.put, chunks.follow))
        future.add_done_callback(chunks.finish)
        try:
            while (chunk := await chunks.aget()) is not None:
                yield chunk
            await asyncio.wrap_future(future)
        finally:
            future.cancel()

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
        self._wait(self._driver.checkpoint())

    def fork(self, session_id: str) -> Shell:
        """Return the shell of a new session: a copy of this session, and of its shell.

        The copy has the same working directory, variables, functions, aliases and options.

        Raises
        ------
        ValueError
            There is a session of that name.
        """
        return self._fork(session_id, self._wait(self._driver.state(is_exact=True)))

    def close(self) -> None:
        """End the shell and everything that it started; return when that is verified.

        A command that runs is ended. It may be called again. What is kept with the session stays:
        the next shell of the session begins with it.
        """
        if self._loop_thread.is_open:
            self._loop_thread.ask(self._driver.close("it was closed")).result()

    # -- details -------------------------------------------------------------------------------

    def _request(self, command: str, **options: Any) -> CommandRequest:
        if self._driver.closed:
            raise ShellClosed(self.session_id, self._driver.closed)
        return CommandRequest.checked(self._driver.options, command, **options)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = self._loop_thread.ask(work)
        try:
            return future.result()
        except BaseException:
            if not future.done():  # Ctrl-C came here: the command must not go on unseen
                self._abandon(future)
            raise

    def _abandon(self, future: Future[Any]) -> None:
        """End a command for which nobody waits any more; return when it has ended."""
        future.cancel()
        self._loop_thread.ask(self._driver.settled()).result()


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
        with contextlib.suppress(
            RuntimeError
        ):  # it is open already; or the reader's loop has ended
            if self._loop is None:
                self._gate.release()
            else:
                self._loop.call_soon_threadsafe(self._event.set)

    def _pop(self) -> ShellChunk:
        chunk = self._chunks.popleft()
        before = self._size
        self._size -= len(chunk.data)
        if before > STREAM_BYTES >= self._size:
            with contextlib.suppress(RuntimeError):  # the loop has ended
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
