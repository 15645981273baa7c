"""Serves the shells and background processes of sessions to workers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from functools import partial
from typing import Any, Final, TypeVar

from ...processes.concurrency import LoopThread
from ...protocol.messages import SessionCall
from ...sessions.state import SessionState
from ...shells.manager import manager
from ...shells.process import Process
from ...shells.results import ShellChunk
from ...shells.shell import Shell
from ...tools.context import session_ended_error
from ..work_item import HostCallContext

STEP_BYTES = 1 << 20
"""Bytes of a command's output from which on they are sent, though there may be more."""

T = TypeVar("T")

Step = tuple[list[Any], bool]
"""What has come of a command: chunks, or its result; and whether that was all."""


def shell_method(
    state: SessionState, host_call: HostCallContext, call: SessionCall
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return the method that a worker requests of its session's shell, or of its processes.

    Raises
    ------
    ValueError
        There is none of that name for workers.
    """
    service = ProcessService(state) if call.part == "processes" else ShellService(state, host_call)
    if call.method not in service.REMOTE:
        msg = f"a session's {call.part} have no method {call.method!r} for workers"
        raise ValueError(msg)
    found: Callable[..., Coroutine[Any, Any, Any]] = getattr(service, call.method)
    return found


class ProcessService:
    """Serves the background processes of a session to workers.

    A worker gets handles: it follows and ends the processes without the owner.

    Parameters
    ----------
    state
        The session.
    """

    REMOTE: Final = frozenset({"start", "list"})

    def __init__(self, state: SessionState) -> None:
        self._state = state

    async def start(self, command: str, **options: Any) -> Process:
        """Start a process."""
        self._state.touch()
        return await asyncio.to_thread(partial(self._state.processes.start, command, **options))

    async def list(self) -> list[Process]:
        """Return the processes of the session."""
        return self._state.processes.list()


class ShellService:
    """Serves the shell of a session to a worker, for one host call.

    A command takes several host calls, each of which lasts until there is something to report: it
    must not keep the thread that serves it from the lane, as the worker may have more to say, or
    die. What a call has begun ends with that call at the latest.

    Parameters
    ----------
    state
        The session.
    host_call
        The host call.
    """

    REMOTE: Final = frozenset(
        {"begin", "proceed", "leave", "interrupt", "attribute", "late_output"}
    )

    def __init__(self, state: SessionState, host_call: HostCallContext) -> None:
        self._state = state
        self._host_call = host_call

    async def begin(self, number: int, kind: str, command: str, options: Mapping[str, Any]) -> Step:
        """Begin a command.

        Parameters
        ----------
        number
            What the worker calls it.
        kind
            ``"run"`` for its result, ``"stream"`` for its chunks, ``"env"`` for the environment.
        command, options
            As for `Shell.run`.
        """
        exchange = self._host_call.exchange
        items = _KINDS[kind](self._state.shell, command, options)
        running = RunningCommand(manager.loop_thread, items)
        if (opened := exchange.opened) is None:
            exchange.opened = opened = {}
        opened[number] = running
        if exchange.on_host_call is None:  # its call has ended meanwhile, in another thread
            running.close()
        return await self._proceed(number, running)

    async def proceed(self, number: int) -> Step:
        """Wait for what comes of a command; return it, or nothing if the lane needs its thread."""
        running = (self._host_call.exchange.opened or {}).get(number)
        if not isinstance(running, RunningCommand):
            raise session_ended_error()  # of the call or cell that has begun it
        return await self._proceed(number, running)

    async def _proceed(self, number: int, running: RunningCommand) -> Step:
        is_over = True
        try:
            items, is_over = await self._await(running.take)
        except asyncio.CancelledError:
            is_over = False  # the call has ended, or is interrupted, and ends it
            raise
        finally:
            if is_over and self._host_call.exchange.opened is not None:
                self._host_call.exchange.opened.pop(number, None)
        return items, is_over

    async def leave(self, number: int) -> None:
        """Interrupt a command, and wait until it has ended."""
        running = (self._host_call.exchange.opened or {}).pop(number, None)
        if isinstance(running, RunningCommand):
            await self._await(partial(running.leave, self._state.shell))

    async def interrupt(self) -> bool:
        """Interrupt the command that runs, whoever has begun it; return whether one ran."""
        return self._state.shell.interrupt()

    async def attribute(self, name: str) -> Any:
        """Return an attribute of the shell."""
        if name not in _ATTRIBUTES:
            msg = f"a session's shell has no attribute {name!r} for workers"
            raise ValueError(msg)
        return getattr(self._state.shell, name)

    async def late_output(self, number: int) -> bytes:
        """Return what came after the end of a command."""
        return self._state.shell.late_output(number)

    async def _await(self, work: Callable[[asyncio.Event], Coroutine[Any, Any, T]]) -> T:
        """Run work in the loop of the shells; hurry it when the lane, or the deadline, calls."""
        hurry = asyncio.Event()
        loop_thread = manager.loop_thread
        deadline = self._host_call.deadline
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        future = asyncio.wrap_future(loop_thread.ask(work(hurry)))
        try:
            with _news_of(self._host_call) as news:
                either: set[asyncio.Future[Any]] = {future, news}
                await asyncio.wait(either, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                loop_thread.soon(hurry.set)
            return await future
        except BaseException:
            future.cancel()
            raise


_ATTRIBUTES = frozenset({"session_id", "cwd", "last", "is_busy", "queue_length", "is_open"})


@contextlib.contextmanager
def _news_of(host_call: HostCallContext) -> Iterator[asyncio.Future[None]]:
    """Yield a future that is done when the lane has something for the thread that drives it.

    That is a frame of the worker's, or the end of the worker.
    """
    loop = asyncio.get_running_loop()
    news: asyncio.Future[None] = loop.create_future()
    lane = host_call.lane
    if host_call.loop is not None:  # an event loop reads the lane meanwhile
        yield news
    elif lane.has_arrived or lane.fileno() < 0:
        news.set_result(None)
        yield news
    else:

        def note() -> None:
            if not news.done():
                news.set_result(None)

        descriptor = lane.fileno()
        loop.add_reader(descriptor, note)
        try:
            yield news
        finally:
            loop.remove_reader(descriptor)


class RunningCommand:
    """A command that a worker has begun. Its coroutines run in the loop of the shells.

    Parameters
    ----------
    loop_thread
        The thread of that loop.
    items
        What comes of it.
    """

    def __init__(self, loop_thread: LoopThread, items: AsyncGenerator[Any, None]) -> None:
        self._loop_thread = loop_thread
        self._items = items
        self._next: asyncio.Future[Any] | None = None
        self._has_ended = False

    async def take(self, hurry: asyncio.Event) -> Step:
        """Wait for items; return those that have come.

        Parameters
        ----------
        hurry
            Set to have it return at once.
        """
        taken: list[Any] = []
        size = 0
        while size < STEP_BYTES:
            if self._next is None:
                self._next = asyncio.ensure_future(anext(self._items, None))
            if taken:
                await asyncio.wait({self._next}, timeout=0)
            else:
                await _first(self._next, hurry)
            if not self._next.done() or (taken and self._has_failed(self._next)):
                break
            if self._next.cancelled():
                raise session_ended_error()
            item = self._next.result()
            self._next = None
            if item is None:
                return taken, True
            taken.append(item)
            size += len(item.data) if isinstance(item, ShellChunk) else 0
        return taken, False

    @staticmethod
    def _has_failed(item: asyncio.Future[Any]) -> bool:
        return item.cancelled() or item.exception() is not None  # raised when asked again

    async def leave(self, shell: Shell, hurry: asyncio.Event) -> None:
        """Interrupt it, and wait until it has ended."""
        await self._end()
        settled = asyncio.ensure_future(shell.settled())
        await _first(settled, hurry)
        settled.cancel()

    def close(self) -> None:
        """Interrupt it, without waiting; from any thread."""
        with contextlib.suppress(RuntimeError):  # the shells, and their loop, have ended
            self._loop_thread.soon(lambda: self._loop_thread.spawn(self._end()))

    async def _end(self) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait({self._next})
            if not self._next.cancelled():
                self._next.exception()  # nobody asks for it any more
        await self._items.aclose()


async def _first(awaited: asyncio.Future[Any], hurry: asyncio.Event) -> None:
    """Wait until something is there, or an event is set."""
    if awaited.done():
        return
    hurried = asyncio.ensure_future(hurry.wait())
    try:
        await asyncio.wait({awaited, hurried}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        hurried.cancel()


async def _run(shell: Shell, command: str, options: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
    yield await shell.arun(command, **options)


async def _stream(
    shell: Shell, command: str, options: Mapping[str, Any]
) -> AsyncGenerator[Any, None]:
    chunks = shell.astream(command, **options)
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        await chunks.aclose()  # type: ignore[attr-defined] # it is a generator


async def _env(
    shell: Shell, _command: str, _options: Mapping[str, Any]
) -> AsyncGenerator[Any, None]:
    yield await asyncio.to_thread(lambda: shell.env)


_KINDS: Final = {"run": _run, "stream": _stream, "env": _env}
