"""What worker code can know about the call or cell that it is, and ask of the notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from threading import Thread, current_thread, main_thread
from typing import TYPE_CHECKING, Any, Protocol, Self

from ..errors import ToolError
from ..protocol.messages import CELL
from ..telemetry.correlation import follow

if TYPE_CHECKING:
    from ..sessions.programs import Metadata, Programs
    from ..sessions.variables import Variables
    from .remote_session import RemoteSession

LIST_HOST_TOOLS = "__names__"
"""The host tool that every owner has: it gives the names of the others."""

SESSION_TOOL = "__session__"
"""Stands for a host tool: a part of the session, a method of that, and its arguments."""


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
        """Send an event, unless there are too many or the owner does not read."""


class HostChannel(Protocol):
    """The way from a worker's code back to the notebook: what the worker's lane offers here."""

    @property
    def events(self) -> EventChannel:
        """Sends events."""

    def call(self, call_id: int, tool: str, arguments: Arguments) -> Any:
        """Call a host tool for a call or cell, and wait for its value."""

    async def acall(self, call_id: int, tool: str, arguments: Arguments) -> Any:
        """Do the same while the event loop goes on."""


Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional arguments, and those by name."""


def call_ended_error(tool: str) -> RuntimeError:
    """Return the error of code whose call, or cell, has ended."""
    if tool == SESSION_TOOL:
        msg = "the session cannot be used here any more: the call, or cell, of this code has ended"
        return RuntimeError(msg)
    return RuntimeError(
        f"host tool {tool!r} cannot be called: nobody listens; host tools work while a call, or a "
        "cell that the pool runs, has not ended"
    )


class SessionContext:
    """The session, pool and worker of a call or cell, and the way back to the notebook.

    Attributes
    ----------
    session_id
        The session that the caller named, or None for anonymous work.
    pool
        Name of the pool.
    worker
        Name of the worker that runs the call.
    correlation_id
        Id of the outermost call of the notebook that this is done for.
    """

    __slots__ = (
        "__weakref__",
        "_call_id",
        "_host_channel",
        "_output",
        "_state",
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
        self._state: RemoteSession | None = None
        self.correlation_id = correlation_id

    def __repr__(self) -> str:
        return f"<SessionContext of {self.session_id!r} on worker {self.worker}>"

    def __reduce__(self) -> tuple[object, ...]:
        known = (self.session_id, self.pool, self.worker)  # the way back stays here
        return SessionContext, known, (None, {"correlation_id": self.correlation_id})

    @property
    def host_tools(self) -> HostTools:
        """The notebook's functions as methods: ``context.host_tools.answer(question="…")``."""
        return HostTools(self)

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
            The function raised; ``__cause__`` is the exception itself when it can travel.
        RuntimeError
            The call or cell has ended, so that nobody listens.
        """
        return self._call_back(name, (), dict(arguments or {}))

    async def acall_host_tool(self, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Do what `call_host_tool` does, while the event loop goes on."""
        arguments = dict(arguments or {})
        try:
            return await self._channel_to_host().acall(self._call_id, name, ((), arguments))
        finally:
            self._invalidate()

    def _call_back(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self._channel_to_host().call(self._call_id, name, (args, kwargs))
        finally:
            self._invalidate()

    def _invalidate(self) -> None:
        """Keep no values that a host tool may just have changed."""
        if self._state is not None:
            self._state.invalidate()

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
        """What was noted about the session."""
        return self._session_state.metadata

    @property
    def _session_state(self) -> RemoteSession:
        if self._state is None:
            from .remote_session import RemoteSession

            self._state = RemoteSession(self._ask, is_cached=self._call_id != CELL)
        return self._state

    def _ask(self, part: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Ask the notebook for something of the session; an exception is raised as it is."""
        way_back = self._channel_to_host()
        if self._call_id == CELL and _cell is not None and self.session_id != _cell.session_id:
            raise call_ended_error(SESSION_TOOL)  # a cell of another session runs
        try:
            return way_back.call(self._call_id, SESSION_TOOL, ((part, method, *args), kwargs))
        except ToolError as error:
            if isinstance(error.__cause__, Exception):
                raise error.__cause__ from None
            raise
        except (TypeError, ValueError) as error:  # something of it cannot travel
            from .remote_session import told_as_in_the_notebook

            raise told_as_in_the_notebook(error, part, method, args) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close what was opened here, such as watches; what is stored stays."""
        if self._state is not None:
            self._state.close()

    # -- events --------------------------------------------------------------------------------

    def emit(self, name: str, /, **attributes: object) -> None:
        """Tell those who listen in the notebook of something, see ``telemetry.subscribe`` there.

        Waits for nothing. What is too much is dropped, and counted: from 1000 events of a name a
        second on, or when nobody reads them there just now.

        Parameters
        ----------
        name
            What has happened: 1 to 64 of ``A-Za-z0-9_.-``.
        attributes
            What is known of it, at most 32: strings, of which the first KiB is kept, numbers and
            booleans, also those of NumPy and arrays without a dimension. Session, worker, pool and
            correlation id are added.

        Raises
        ------
        TypeError, ValueError
            The name or an attribute is not like that.
        RuntimeError
            This context has left its worker.
        """
        if self._host_channel is None:
            msg = "this context has left its worker, where events can be emitted"
            raise RuntimeError(msg)
        self._host_channel.events.emit(
            self._call_id, name, attributes, self.session_id, self.correlation_id
        )

    def _channel_to_host(self) -> HostChannel:
        if self._host_channel is None:
            msg = "this context has left its worker, where host tools can be called"
            raise RuntimeError(msg)
        return self._host_channel


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
            return self._context._call_back(name, args, kwargs)  # noqa: SLF001 - one idea in two classes

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
"""The calls that run, in whatever thread."""
_threads: dict[SessionContext, list[Thread]] = {}
"""The threads that they have started."""


def context() -> SessionContext:
    """Return the context of the call or cell that runs in this worker.

    In a thread that a call or cell has started, or in a function that it has given to a
    ``ThreadPoolExecutor``, it is that of this call or cell. In other threads it is that of the
    running call, if only one runs.

    Raises
    ------
    RuntimeError
        This is not a worker; or it is a thread of which nobody knows whose work it does.
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
            msg = f"{len(_running)} calls run, and this thread is of none of them; {_HAND_OVER}"
            raise RuntimeError(msg)
        return next(iter(_running.copy()), _cell)
    if starter in _running:
        return starter
    if _is_cell(starter) and starter.session_id == _cell.session_id:
        return _cell
    msg = (
        f"the {'cell' if _is_cell(starter) else 'call'} that started this thread has ended, "
        f"and whose work the thread does is not known; {_HAND_OVER}"
    )
    raise RuntimeError(msg)


_HAND_OVER = (
    "take context = snakepit_kernel.context() where the call begins, and hand it to the thread"
)


def context_of_here() -> SessionContext | None:
    """Return the context that what is shown here belongs to; None if that is not known."""
    return _call.get() or _starter.get()


def call_of_here() -> SessionContext | None:
    """Return the call that what is shown here belongs to, also if it has ended; None for none."""
    found = _call.get() or _starter.get()
    return None if found is None or _is_cell(found) else found


def begin_call(value: SessionContext) -> None:
    """Note that a call runs."""
    _running.add(value)
    _call.set(value)


def end_call(value: SessionContext) -> bool:
    """Note that a call has ended; say whether threads that it has started go on."""
    _running.discard(value)
    threads = _threads.pop(value, ()) if _threads else ()
    return bool(threads) and any(thread.is_alive() for thread in threads)


def starting_here() -> SessionContext | None:
    """Return the context of the call or cell that is about to start something."""
    found = _call.get() or _starter.get()
    if found is None and _has_run_cells and is_main_thread():
        return _cell
    return found  # the kernel's own threads are nobody's


def note_thread(context: SessionContext, thread: Thread) -> None:
    """Note that a call or cell starts a thread."""
    if context in _running:
        _threads.setdefault(context, []).append(thread)


def _is_cell(context: SessionContext) -> bool:
    return context._call_id == CELL  # noqa: SLF001 - one idea in two pieces


def enter_thread(starter: SessionContext) -> None:
    """Note in a new thread who has started it."""
    _starter.set(starter)


def is_main_thread() -> bool:
    """Whether this is the main thread."""
    return current_thread() is main_thread()


def enter_worker(pool: str, worker: str, host_channel: HostChannel | None = None) -> None:
    """Make this process a worker."""
    global _cell  # noqa: PLW0603 - a process is one worker
    _cell = SessionContext(None, pool, worker, host_channel)
    follow(_correlation)


def enter_slot(worker: str) -> None:
    """Take the name that goes with a slot of the pool."""
    global _cell  # noqa: PLW0603
    cell = context_of_cells()
    _cell = SessionContext(cell.session_id, cell.pool, worker, cell._host_channel)  # noqa: SLF001


def enter_cell(session_id: str | None) -> None:
    """Name the session of the cells that come."""
    global _cell, _has_run_cells  # noqa: PLW0603
    _has_run_cells = True
    cell = context_of_cells()
    _cell = SessionContext(session_id, cell.pool, cell.worker, cell._host_channel)  # noqa: SLF001


def correlate_cell(correlation: str) -> None:
    """Give the cell that is about to run its correlation id."""
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
    """Make a context that of the current call, in the current task."""
    _call.set(value)
