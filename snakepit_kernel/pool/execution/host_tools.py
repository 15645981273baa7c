"""Host tools: functions of the notebook that workers may call, run in the notebook's process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from ...errors import ToolNotFound
from ...lane import replies
from ...lane.nested_loops import around_another_loop
from ...protocol.frames import Frame, Segment
from ...protocol.messages import HostCall, SessionCall, ToolInfo
from ...sessions.state import SessionState
from ...telemetry import correlation
from ...tools.adapter import ToolOptions, options_of
from ...tools.context import LIST_HOST_TOOLS
from ...tools.registry import Tool
from ...tracebacks import hides_own_frames
from ..call_events import HostReport
from ..work_item import HostCallContext, _host_call

FindSession = Callable[[str | None, str], SessionState]

ASYNC_PARTS = frozenset({"shell", "processes"})
"""The parts of a session whose methods for workers are coroutine functions."""


class HostTools:
    """The functions of the notebook that the workers of a pool may call.

    Parameters
    ----------
    remembered
        Returns the names of the host tools that a session had, also in an earlier kernel.
    """

    def __init__(self, remembered: Callable[[str], Iterable[str]]) -> None:
        self._remembered = remembered
        self._tools: dict[str | None, dict[str, Tool]] = {}

    def add(self, function: Callable[..., Any], session: str | None = None) -> Tool:
        """Add or replace a function; with a session, for that session only.

        Raises
        ------
        TypeError
            The function cannot be a host tool.
        """
        if not callable(function):
            msg = f"a host tool is a function, not {type(function).__name__} {function!r}"
            raise TypeError(msg)
        tool = Tool(function, options_of(function) or ToolOptions())
        if tool.streams:
            msg = f"host tool {tool.name!r} is a generator; host tools return one value"
            raise TypeError(msg)
        self._tools.setdefault(session, {})[tool.name] = tool
        return tool

    def forget(self, session: str) -> None:
        """Remove the functions of one session."""
        self._tools.pop(session, None)

    def own_names(self, session: str) -> list[str]:
        """Return the names of the functions that only one session has."""
        return sorted(self._tools.get(session, {}))

    def names(self, session: str | None = None) -> list[str]:
        """Return the names of the functions that a session's calls may call."""
        return sorted({**self._tools.get(None, {}), **self._tools.get(session, {})})

    def find(self, name: str, session: str | None) -> Tool:
        """Return a function; a session's own takes precedence.

        Raises
        ------
        ToolNotFound
            There is no function of that name.
        """
        found = self._tools.get(session, {}).get(name) or self._tools.get(None, {}).get(name)
        if found is not None:
            return found
        if name == LIST_HOST_TOOLS:
            return Tool(lambda: self.names(session), ToolOptions(name=name))
        raise ToolNotFound(name, self.names(session), self._hint_for_missing(name, session))

    def _hint_for_missing(self, name: str, session: str | None) -> str:
        """Return a hint for a missing function that the session had before, else an empty text."""
        if session is None or name not in self._remembered(session):
            return ""
        return (
            f"session {session!r} had it before its kernel was restarted, or in another pool; "
            f"expose it again, by session.host_tool({name}) or "
            f"%snakepit expose {name} --session {session}"
        )


@hides_own_frames
class HostToolList(Mapping[str, ToolInfo]):
    """The functions of the notebook that the calls of a pool or session may call, by name.

    Parameters
    ----------
    tools
        All host tools of the pool.
    session
        The session; None for the tools of the pool.
    """

    def __init__(self, tools: HostTools, session: str | None) -> None:
        self._tools = tools
        self._session = session

    def __getitem__(self, name: str) -> ToolInfo:
        if name not in self._tools.names(self._session):
            raise KeyError(name)
        return self._tools.find(name, self._session).info()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tools.names(self._session))

    def __len__(self) -> int:
        return len(self._tools.names(self._session))

    def __repr__(self) -> str:
        lines = [f"{name}{info.signature}" for name, info in self.items()]
        return "\n".join(lines) or "no host tools"


class HostToolServer:
    """Serves the host calls of workers, in the notebook's process.

    Parameters
    ----------
    tools
        The functions.
    find_session
        Returns the state of the session of a call, by its id, to serve a part of it.
    """

    def __init__(self, tools: HostTools, find_session: FindSession) -> None:
        self._tools = tools
        self._find_session = find_session

    def is_async(self, call: HostCall, session: str | None) -> bool:
        """Whether what a call runs is a coroutine function."""
        if isinstance(call, SessionCall):
            return call.part in ASYNC_PARTS
        try:
            return self._tools.find(call.tool, session).is_async
        except ToolNotFound:
            return False

    def serve(
        self, host_call: HostCallContext, call: HostCall, frame: Frame, session: str | None
    ) -> list[Segment]:
        """Run a host tool in this thread; return the encoded answer.

        An exception that is no `Exception`, such as KeyboardInterrupt, propagates.
        """
        token, correlation_token = (
            _host_call.set(host_call),
            correlation.serve(host_call.correlation),
        )
        try:
            with HostReport(host_call, call, session) as report:
                return self._serve(host_call, call, frame, session, report)
        finally:
            correlation.leave(correlation_token)
            _host_call.reset(token)
            _close_streams(host_call)

    def _serve(
        self,
        host_call: HostCallContext,
        call: HostCall,
        frame: Frame,
        session: str | None,
        report: HostReport,
    ) -> list[Segment]:
        marshaller = host_call.lane.marshaller
        try:
            bound = self._prepare(host_call, call, frame, session)
        except Exception as error:  # noqa: BLE001 - it is the answer to the worker
            report.outcome = "error"
            return replies.with_error(marshaller, call.id, error, before_running=True)
        try:
            value = bound()
            if asyncio.iscoroutine(value):
                value = _run_coroutine(value)
        except Exception as error:  # noqa: BLE001 - the same
            report.outcome = "error"
            return replies.with_error(marshaller, call.id, error)
        return replies.encode_value(marshaller, call.id, value)

    async def serve_async(
        self, host_call: HostCallContext, call: HostCall, frame: Frame, session: str | None
    ) -> list[Segment]:
        """Run a coroutine function that is a host tool, in its own task; return the answer."""
        _host_call.set(host_call)
        correlation.serve(host_call.correlation)
        try:
            with HostReport(host_call, call, session) as report:
                return await self._serve_async(host_call, call, frame, session, report)
        finally:
            await _close_streams_async(host_call)

    async def _serve_async(
        self,
        host_call: HostCallContext,
        call: HostCall,
        frame: Frame,
        session: str | None,
        report: HostReport,
    ) -> list[Segment]:
        marshaller = host_call.lane.marshaller
        try:
            bound: Callable[[], Awaitable[Any]] = self._prepare(host_call, call, frame, session)
        except Exception as error:  # noqa: BLE001 - it is the answer to the worker
            report.outcome = "error"
            return replies.with_error(marshaller, call.id, error, before_running=True)
        try:
            value = await bound()
        except Exception as error:  # noqa: BLE001 - the same
            report.outcome = "error"
            return replies.with_error(marshaller, call.id, error)
        return replies.encode_value(marshaller, call.id, value)

    def _prepare(
        self, host_call: HostCallContext, call: HostCall, frame: Frame, session: str | None
    ) -> Callable[[], Any]:
        marshaller = host_call.lane.marshaller
        args, kwargs = marshaller.load(call, frame)
        if isinstance(call, SessionCall):
            state = self._find_session(session, call.part)
            if call.part in ASYNC_PARTS:
                from .shell_calls import shell_method  # loads what only shells need

                found = shell_method(state, host_call, call)
            else:
                found = state.serve(host_call.lane.worker.name, call.part, call.method)
            return partial(found, *args, **kwargs)
        tool = self._tools.find(call.tool, session)
        return tool.bind(None, args, kwargs)


def _close_streams(host_call: HostCallContext) -> None:
    while host_call.streams:
        host_call.streams.pop().close()


async def _close_streams_async(host_call: HostCallContext) -> None:
    while host_call.async_streams:
        with contextlib.suppress(RuntimeError):  # another task is awaiting its next chunk
            await host_call.async_streams.pop().aclose()
    _close_streams(host_call)


def _run_coroutine(running: Any) -> Any:
    """Run a coroutine in a new event loop, also in a cell, where the notebook's loop is running."""
    leave_loop, enter_loop = around_another_loop()
    try:
        leave_loop()
        with asyncio.Runner(
            loop_factory=asyncio.new_event_loop
        ) as runner:  # the thread keeps its own
            return runner.run(running)
    finally:
        enter_loop()
