"""Context of the running call or cell in a worker: its session, and access to the notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from threading import Thread, current_thread, main_thread
from typing import TYPE_CHECKING, Any, Protocol, Self

from ..errors import ToolError
from ..protocol.messages import CELL, SessionPart
from ..telemetry.correlation import follow
from ..tracebacks import hide_own_frames, hides_own_frames

if TYPE_CHECKING:
    from ..sessions.programs import Metadata, Programs
    from ..sessions.variables import Variables
    from .remote_session import RemoteSession
    from .remote_shell import RemoteProcesses, RemoteShell

LIST_HOST_TOOLS = "__names__"
"""The host tool that every owner has: it returns the names of the others."""


class EventChannel(Protocol):
    """Sends events of calls and cells to the notebook."""

    def emit(
        self,
        call_id: int,
        name: str,
        attributes: Mapping[str, object],
        session: str | None,
        correlation: str,
    ) -> None:
        """Send an event; drop it if there are too many or the owner does not read."""


class HostChannel(Protocol):
    """Calls from a worker's code to the notebook, over the worker's lane."""

    @property
    def events(self) -> EventChannel:
        """Sends events."""

    def call(self, call_id: int, tool: str, arguments: Arguments) -> Any:
        """Call a host tool for a call or cell, and wait for its value."""

    async def acall(self, call_id: int, tool: str, arguments: Arguments) -> Any:
        """Do the same as `call`, without blocking the event loop."""

    def call_session(
        self, call_id: int, part: SessionPart, method: str, arguments: Arguments
    ) -> Any:
        """Call a method of a part of the session for a call or cell, and wait for its value."""

    async def acall_session(
        self, call_id: int, part: SessionPart, method: str, arguments: Arguments
    ) -> Any:
        """Do the same as `call_session`, without blocking the event loop."""


Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional arguments, and keyword arguments."""


def session_ended_error() -> RuntimeError:
    """Return the error of a use of the session by a call, or cell, that has ended."""
    msg = "the session cannot be used here any more: the call, or cell, of this code has ended"
    return RuntimeError(msg)


class SessionContext:
    """The session, pool and worker of a call or cell, and its access to the notebook.

    Attributes
    ----------
    session_id
        The session that the caller named, or None for anonymous work.
    pool
        Name of the pool.
    worker
        Name of the worker that runs the call.
    correlation_id
        Id of the outermost call of the notebook that it runs for.
    """

    __slots__ = (
        "__weakref__",
        "_call_id",
        "_host_channel",
        "_output",
        "_remote_session",
        "correlation_id",
        "pool",
        "session_id",
        "worker",
    )

    def __init__(
        self,
        session_id: str | None,
        pool: str,
        worker: str,
        host_channel: HostChannel | None = None,
        call_id: int = CELL,
        *,
        correlation_id: str = "",
        output: Any = None,
    ) -> None:
        self.session_id = session_id
        self.pool = pool
        self.worker = worker
        self._host_channel = host_channel
        self._call_id = call_id
        self._output = output
        self._remote_session: RemoteSession | None = None
        self.correlation_id = correlation_id

    def __repr__(self) -> str:
        return f"<SessionContext of {self.session_id!r} on worker {self.worker}>"

    def __reduce__(self) -> tuple[object, ...]:
        known = (self.session_id, self.pool, self.worker)  # the host channel is this worker's
        return SessionContext, known, (None, {"correlation_id": self.correlation_id})

    @property
    def host_tools(self) -> HostTools:
        """The notebook's functions as methods: ``context.host_tools.answer(question="…")``."""
        return HostTools(self)

    @hides_own_frames
    def call_host_tool(self, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Call a function of the notebook, and wait for its value.

        The function runs in the notebook, in the thread that called the tool or runs the cell. It
        may call tools itself, also of this worker.

        Parameters
        ----------
        name
            Name of the host tool.
        arguments
            Its arguments by name.

        Raises
        ------
        ToolNotFound, InvalidArguments
            There is no such host tool, or the arguments do not fit; nothing ran.
        ToolError
            The function raised; ``__cause__`` is the exception itself if it can be pickled.
        RuntimeError
            The call or cell has ended, and its host calls are no longer served.
        """
        return self._call_host(name, (), dict(arguments or {}))

    @hides_own_frames
    async def acall_host_tool(self, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Do the same as `call_host_tool`, without blocking the event loop."""
        arguments = dict(arguments or {})
        try:
            return await self._require_channel().acall(self._call_id, name, ((), arguments))
        finally:
            self._invalidate()

    def _call_host(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self._require_channel().call(self._call_id, name, (args, kwargs))
        finally:
            self._invalidate()

    def _invalidate(self) -> None:
        """Drop cached values, which a host tool may just have changed."""
        if self._remote_session is not None:
            self._remote_session.invalidate()

    # -- the session ---------------------------------------------------------------------------

    @property
    def variables(self) -> Variables:
        """The variables of the session, as `Session.variables` has them in the notebook."""
        return self._session_state.variables

    @property
    def programs(self) -> Programs:
        """The programs of the session; of anonymous work the global ones."""
        return self._session_state.programs

    @property
    def metadata(self) -> Metadata:
        """The metadata of the session."""
        return self._session_state.metadata

    @property
    def shell(self) -> RemoteShell:
        """The shell of the session, as `Session.shell` is in the notebook, which runs it."""
        return self._session_state.shell

    @property
    def processes(self) -> RemoteProcesses:
        """The background processes of the session."""
        return self._session_state.processes

    @property
    def _session_state(self) -> RemoteSession:
        if self._remote_session is None:
            from .remote_session import RemoteSession

            self._remote_session = RemoteSession(
                self._call_session, self._acall_session, is_cached=self._call_id != CELL
            )
        return self._remote_session

    def _call_session(self, part: SessionPart, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of a part of the session in the notebook; raise its exception itself."""
        channel = self._session_channel()
        try:
            return channel.call_session(self._call_id, part, method, (args, kwargs))
        except Exception as error:  # noqa: BLE001 - it is raised as the notebook would
            raise _error_in_notebook(error, part, method, args) from None

    async def _acall_session(
        self, part: SessionPart, method: str, *args: Any, **kwargs: Any
    ) -> Any:
        """Do the same as `_call_session`, without blocking the event loop."""
        channel = self._session_channel()
        try:
            return await channel.acall_session(self._call_id, part, method, (args, kwargs))
        except Exception as error:  # noqa: BLE001 - the same
            raise _error_in_notebook(error, part, method, args) from None

    def _session_channel(self) -> HostChannel:
        channel = self._require_channel()
        if self._call_id == CELL and _cell is not None and self.session_id != _cell.session_id:
            raise session_ended_error()  # a cell of another session runs
        return channel

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close what was opened here, such as watches; what is stored stays."""
        if self._remote_session is not None:
            self._remote_session.close()

    # -- events --------------------------------------------------------------------------------

    @hides_own_frames
    def emit(self, name: str, /, **attributes: object) -> None:
        """Emit an event to the notebook, for the handlers of ``telemetry.subscribe`` there.

        Never waits. Events are dropped, and counted, if there are more than 1000 of a name in a
        second, or the notebook does not read them at the moment.

        Parameters
        ----------
        name
            Kind of event: 1 to 64 of ``A-Za-z0-9_.-``.
        attributes
            Facts about it, at most 32: strings, of which the first KiB is kept, numbers and
            booleans, also those of NumPy and zero-dimensional arrays. Session, worker, pool and
            correlation id are added.

        Raises
        ------
        TypeError, ValueError
            The name or an attribute is not valid.
        RuntimeError
            This context has left its worker.
        """
        if self._host_channel is None:
            msg = "this context has left its worker, where events can be emitted"
            raise RuntimeError(msg)
        self._host_channel.events.emit(
            self._call_id, name, attributes, self.session_id, self.correlation_id
        )

    def _require_channel(self) -> HostChannel:
        if self._host_channel is None:
            msg = "this context has left its worker, where host tools can be called"
            raise RuntimeError(msg)
        return self._host_channel


def _error_in_notebook(
    error: Exception, part: SessionPart, method: str, args: tuple[Any, ...]
) -> Exception:
    """Return the error that the notebook would get for an error of a call to the session."""
    if isinstance(error, ToolError) and isinstance(error.__cause__, Exception):
        return error.__cause__
    if not isinstance(error, TypeError | ValueError):
        return error
    from .remote_session import error_as_in_notebook  # a part of it cannot be pickled

    return error_as_in_notebook(error, part, method, args)


class HostTools:
    """The functions of the notebook that a call or cell may call, as methods.

    Parameters
    ----------
    context
        Of the call or cell.
    """

    def __init__(self, context: SessionContext) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return self._context._call_host(name, args, kwargs)  # noqa: SLF001 - one idea in two classes
            except BaseException as error:
                hide_own_frames(error)
                raise

        call.__name__ = call.__qualname__ = name
        return call

    __getitem__ = __getattr__

    def __iter__(self) -> Iterator[str]:
        return iter(self._context.call_host_tool(LIST_HOST_TOOLS))

    def __dir__(self) -> list[str]:
        return [name for name in self if name.isidentifier()]


_call: ContextVar[SessionContext | None] = ContextVar("snakepit_call", default=None)
_starter: ContextVar[SessionContext | None] = ContextVar("snakepit_starter", default=None)
_cell: SessionContext | None = None
_has_run_cells = False
_running: set[SessionContext] = set()
"""The running calls, of all threads."""
_threads: dict[SessionContext, list[Thread]] = {}
"""The threads that each running call has started."""


def context() -> SessionContext:
    """Return the context of the call or cell that runs in this worker.

    In a thread that a call or cell has started, or in a function that it has submitted to a
    ``ThreadPoolExecutor``, it is that of this call or cell. In other threads it is that of the
    running call, if only one runs.

    Raises
    ------
    RuntimeError
        This is not a worker; or the thread cannot be attributed to a call or cell.
    """
    if _cell is None:
        msg = "snakepit_kernel.context() works in a worker, in a tool or a cell; this is neither"
        raise RuntimeError(msg)
    call = _call.get()
    if call is not None:
        return call
    starter = _starter.get()
    if starter is None:
        if len(_running) > 1 and not is_main_thread():
            msg = f"{len(_running)} calls run, and this thread belongs to none; {_CONTEXT_ADVICE}"
            raise RuntimeError(msg)
        return next(iter(_running.copy()), _cell)
    if starter in _running:
        return starter
    if _is_cell(starter) and starter.session_id == _cell.session_id:
        return _cell
    msg = (
        f"the {'cell' if _is_cell(starter) else 'call'} that started this thread has ended, "
        f"and whose work the thread does is not known; {_CONTEXT_ADVICE}"
    )
    raise RuntimeError(msg)


_CONTEXT_ADVICE = (
    "take context = snakepit_kernel.context() where the call begins, and hand it to the thread"
)


def is_worker() -> bool:
    """Whether this process is a worker of a pool."""
    return _cell is not None


def context_of_here() -> SessionContext | None:
    """Return the context that output of this code belongs to; None if that is unknown."""
    return _call.get() or _starter.get()


def call_of_here() -> SessionContext | None:
    """Return the call that output of this code belongs to, also if it has ended; None for none."""
    found = _call.get() or _starter.get()
    return None if found is None or _is_cell(found) else found


def begin_call(value: SessionContext) -> None:
    """Record that a call runs, in the current task."""
    _running.add(value)
    _call.set(value)


def end_call(value: SessionContext) -> bool:
    """Record that a call has ended; return whether threads that it has started go on."""
    _running.discard(value)
    threads = _threads.pop(value, ()) if _threads else ()
    return bool(threads) and any(thread.is_alive() for thread in threads)


def starter_of_here() -> SessionContext | None:
    """Return the context of the call or cell that is about to start a thread."""
    found = _call.get() or _starter.get()
    if found is None and _has_run_cells and is_main_thread():
        return _cell
    return found  # None for the kernel's own threads


def record_thread(context: SessionContext, thread: Thread) -> None:
    """Record a thread that a running call starts."""
    if context in _running:
        _threads.setdefault(context, []).append(thread)


def _is_cell(context: SessionContext) -> bool:
    return context._call_id == CELL  # noqa: SLF001 - one idea in two pieces


def set_starter(starter: SessionContext) -> None:
    """Set the context of the call or cell that has started this thread."""
    _starter.set(starter)


def is_main_thread() -> bool:
    """Whether this is the main thread."""
    return current_thread() is main_thread()


def enter_worker(pool: str, worker: str, host_channel: HostChannel | None = None) -> None:
    """Make this process a worker."""
    global _cell  # noqa: PLW0603 - a process is one worker
    _cell = SessionContext(None, pool, worker, host_channel)
    follow(_correlation)


def rename_worker(worker: str) -> None:
    """Change the worker's name to that of its slot in the pool."""
    global _cell  # noqa: PLW0603
    cell = context_of_cells()
    _cell = SessionContext(cell.session_id, cell.pool, worker, cell._host_channel)  # noqa: SLF001


def enter_cell(session_id: str | None) -> None:
    """Set the session of the next cell."""
    global _cell, _has_run_cells  # noqa: PLW0603
    _has_run_cells = True
    cell = context_of_cells()
    _cell = SessionContext(session_id, cell.pool, cell.worker, cell._host_channel)  # noqa: SLF001


def correlate_cell(correlation: str) -> None:
    """Set the correlation id of the cell that is about to run."""
    context_of_cells().correlation_id = correlation


def _correlation() -> str:
    found = _call.get() or _starter.get() or _cell
    return "" if found is None else found.correlation_id


def context_of_cells() -> SessionContext:
    """Return the context of this worker's cells."""
    assert _cell is not None
    return _cell


def context_of_call() -> SessionContext | None:
    """Return the context of the call that runs in the current task, if one does."""
    return _call.get()


def enter_call(value: SessionContext | None) -> None:
    """Set the context of the current call, in the current task."""
    _call.set(value)
