"""Common base of pools and sessions: calls, streams, functions and cells."""

from __future__ import annotations

import asyncio
import queue
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NoReturn, ParamSpec, TypeVar

from ..errors import CellError, PoolDegraded, ToolNotFound
from ..output.display import page_request
from ..protocol.codec import BoundBuffers, cannot_travel, pickled
from ..protocol.messages import ToolInfo
from ..tracebacks import hide_own_frames, hides_own_frames
from ..validation import check_count, check_priority, check_seconds
from ..worker import namespace
from .engine import Engine
from .execution.host_tools import HostToolList
from .execution.pipeline import FutureItem
from .partition import check_variable, complete, join, split
from .references import RemoteRef, home_of
from .requests import FunctionRequest, SharedRequest, ToolRequest
from .results import CallFuture, CellResult, Stream, checked
from .scheduling.affinity import Home
from .scheduling.fair_queue import Bound
from .scheduling.scheduler import Purpose
from .tools import SharedFunction, ToolDefinitions, ToolsAttribute
from .work_item import Request, WorkItem, current_host_call
from .workers.jupyter import Cell, OnInput, OnMessage, ShellRequest
from .workers.worker import PooledLane

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

STREAM_BUFFER = 100
"""Default number of chunks that a stream may be ahead of its consumer."""

DEFAULT: Final = "default"
"""Stands for the setting of the tool or of the pool."""

Timeout = float | None | Literal["default"]


@hides_own_frames
class Caller:
    """Calls tools, runs cells and submits functions; base of `Pool` and `Session`."""

    _engine: Engine
    _definitions: ToolDefinitions
    _session_id: str | None = None
    _home: Home[PooledLane] | None = None
    _fails_fast = False
    _priority = 0

    def __reduce__(self) -> NoReturn:
        msg = (
            f"a {type(self).__name__} stays in its process; in a worker, snakepit_kernel.context() "
            "has the session's variables, and calls functions of the notebook (@pool.host_tool)"
        )
        raise TypeError(msg)

    # -- tools ---------------------------------------------------------------------------------

    tools = ToolsAttribute()

    def call(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = DEFAULT,
        priority: int | None = None,
        keep: bool = False,
    ) -> Any:
        """Call a tool and return its value.

        Parameters
        ----------
        tool
            Name of the tool.
        arguments
            Its arguments by name.
        timeout
            Seconds for the wait in the queue, the run and the reply together; None for no limit.
            Default: the tool's own, else the pool's.
        priority
            In the queue higher goes first. Default: the session's, else 0.
        keep
            Whether the value stays in its worker, and a `RemoteRef` to it is returned.

        Raises
        ------
        ToolNotFound, InvalidArguments, CellsOnly
            The call is wrong; nothing ran.
        ToolError
            The tool raised; ``__cause__`` is the exception itself when it can be pickled.
        CallTimeout, QueueTimeout, PoolSaturated
            The time was over, or the queue full. After a CallTimeout the work was interrupted.
        WorkerDied
            The worker died during the call.
        SessionLost, WorkerBusy
            The worker that a strict session is bound to has ended, or is busy; nothing ran.
        PoolClosed
            The pool has ended.

        Notes
        -----
        Ctrl-C interrupts the call in its worker as well, and leaves the worker usable.
        What the tool prints is printed here.
        """
        if keep:
            work = self._tool_work(tool, (), dict(arguments or {}), timeout, priority, keeps=True)
            return RemoteRef(self, self._engine.work.call(work))
        work = self._tool_work(tool, (), dict(arguments or {}), timeout, priority)
        return self._engine.work.call(work)

    async def acall(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = DEFAULT,
        priority: int | None = None,
    ) -> Any:
        """Call a tool as `call` does, without blocking the event loop.

        Cancelling the task interrupts the tool.
        """
        try:
            work = self._tool_work(
                tool, (), dict(arguments or {}), timeout, priority, bound="max_futures"
            )
            return await self._engine.work.acall(work)
        except BaseException as error:
            hide_own_frames(error)
            raise

    def stream(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = DEFAULT,
        buffer: int = STREAM_BUFFER,
        priority: int | None = None,
    ) -> Stream:
        """Call a tool that yields, and return an iterator of its chunks as they arrive.

        Parameters
        ----------
        tool
            Name of the tool: a generator function, or an asynchronous one.
        arguments
            Its arguments by name.
        timeout
            Seconds from the request of the first chunk until the arrival of the last one.
        buffer
            Chunks that the tool may be ahead of the consumer.
        priority
            As for `call`.

        Returns
        -------
        Stream
            An iterator; a worker is assigned when the first chunk is requested.

        Raises
        ------
        TypeError
            The tool does not stream.
        ToolNotFound, InvalidArguments
            As for `call`. The other errors of `call` are raised in place of the next chunk, after
            all earlier chunks have been consumed.
        """
        return self._stream(tool, (), dict(arguments or {}), timeout, buffer, priority=priority)

    def astream(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = DEFAULT,
        buffer: int = STREAM_BUFFER,
        priority: int | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Call a tool as `stream` does, without blocking the event loop."""
        room = check_count("buffer", buffer, 1)
        begin = self._stream_work(
            *(tool, (), dict(arguments or {}), timeout, room),
            priority=priority,
            bound="max_futures",
        )
        stream = self._engine.work.astream(begin, room)
        host_call = current_host_call()
        if host_call is not None:
            host_call.async_streams.append(stream)
        return stream

    def _stream(
        self,
        tool: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: Timeout = DEFAULT,
        buffer: int = STREAM_BUFFER,
        *,
        priority: int | None = None,
    ) -> Stream:
        room = check_count("buffer", buffer, 1)
        begin = self._stream_work(tool, args, kwargs, timeout, room, priority=priority)
        chunks = self._engine.work.stream(begin, room)
        stream = Stream(chunks, lambda: self._engine.is_own_thread)
        host_call = current_host_call()
        if host_call is not None:
            host_call.streams.append(stream)
        return stream

    def _stream_work(
        self,
        tool: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: Timeout,
        room: int,
        *,
        priority: int | None,
        bound: Bound = "max_queue",
    ) -> Callable[[], WorkItem]:
        """Check and pickle a stream's request; return a factory of its work item."""
        self._engine.check_open()
        info = self._find_tool(tool)
        if not info.streams:
            msg = f"tool {tool!r} does not stream, it returns one value; call it by call()"
            raise TypeError(msg)
        request = self._tool_request(info, args, kwargs, room)
        return lambda: self._tool_item(info, request, timeout, priority, bound)

    def _call(
        self,
        tool: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: Timeout = DEFAULT,
        priority: int | None = None,
    ) -> Any:
        return self._engine.work.call(self._tool_work(tool, args, kwargs, timeout, priority))

    def _tool_work(
        self,
        tool: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: Timeout,
        priority: int | None,
        *,
        bound: Bound = "max_queue",
        keeps: bool = False,
    ) -> WorkItem:
        self._engine.check_open()
        info = self._definitions.infos.get(tool) or self._find_tool(tool)
        if info.streams:
            msg = f"tool {tool!r} streams; call it by stream(), or by tools.{tool}(…)"
            raise TypeError(msg)
        request = self._tool_request(info, args, kwargs, keeps=keeps)
        return self._tool_item(info, request, timeout, priority, bound)

    def _tool_item(
        self,
        info: ToolInfo,
        request: ToolRequest,
        timeout: Timeout,
        priority: int | None,
        bound: Bound,
    ) -> WorkItem:
        return self._work(
            info.name,
            request,
            timeout,
            tool_timeout=info.timeout,
            priority=priority,
            idempotent=info.idempotent,
            bound=bound,
        )

    def _tool_request(
        self,
        info: ToolInfo,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        room: int = 0,
        *,
        keeps: bool = False,
    ) -> ToolRequest:
        """Check and pickle a request before a worker is assigned."""
        self._definitions.validator.check(info, args, kwargs)
        body, buffers = pickled(self._engine.config.codec, info.name, args, kwargs)
        home = self._home_of(buffers) if type(buffers) is BoundBuffers else None
        return ToolRequest(
            self._definitions, info.name, body, buffers, room=room, home=home, keeps=keeps
        )

    def _find_tool(self, name: str) -> ToolInfo:
        info = self._definitions.infos.get(name) or self._engine.supervisor.tools.get(name)
        if info is None:
            self._engine.config.kernel.require_lane(f"tool {name!r}")
            raise ToolNotFound(name, self.tool_names())
        return info

    def tool_names(self) -> list[str]:
        """Return the names of all tools."""
        return sorted({**self._engine.supervisor.tools, **self._definitions.infos})

    # -- host tools ----------------------------------------------------------------------------

    @property
    def host_tools(self) -> HostToolList:
        """The functions of the notebook that workers may call here, by name."""
        return HostToolList(self._engine.host_tools, self._session_id)

    def host_tool(self, function: F) -> F:
        """Let workers call a function of the notebook; a decorator.

        Workers reach it by ``context.call_host_tool("name", {…})`` or ``context.host_tools.name``
        while a call, or a cell, of this pool or session runs. It runs here, in the thread that
        waits for that call, and may call tools itself. For a future it runs in a separate thread.
        Decorating a function of the same name again replaces it.

        Raises
        ------
        TypeError
            It cannot be a host tool.
        """
        self._engine.config.kernel.require_lane("a host tool")
        self._engine.host_tools.add(function, self._session_id)
        return function

    # -- functions -----------------------------------------------------------------------------

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> CallFuture[T]:
        """Run a function in a worker; return its future.

        Parameters
        ----------
        fn
            Any function, including those defined in the notebook, or a coroutine function.
        args, kwargs
            Its arguments.

        Returns
        -------
        CallFuture
            Its exception is the function's own, with the worker's traceback as its cause.

        Raises
        ------
        TypeError
            The function or an argument cannot be pickled; or the pool's kernel runs cells only
            (`CellsOnly`).
        PoolSaturated, SessionLost, WorkerBusy, PoolClosed
            The work was not accepted.
        """
        try:
            name, request = self._function_request(fn, args, kwargs)
            return self._submit(name, request, bound="max_futures")
        except BaseException as error:
            hide_own_frames(error)
            raise

    def keep(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> RemoteRef:
        """Run a function in a worker; leave its value there, and return a reference to it.

        Parameters
        ----------
        fn, args, kwargs
            As for `submit`.

        Returns
        -------
        RemoteRef
            Stands for the value: its methods, attributes and items are used there. The worker is
            not replaced for its age or its calls while there is one.

        Raises
        ------
        Exception
            The function's own.
        TypeError, QueueTimeout, PoolSaturated, WorkerDied, PoolClosed
            As for `call`.
        """
        try:
            name, request = self._function_request(fn, args, kwargs, keeps=True)
            work = self._work(name, request, DEFAULT)
            return RemoteRef(self, self._engine.work.call(work, raise_original=True))
        except BaseException as error:
            hide_own_frames(error)
            raise

    def _apply_to(
        self,
        home: Home[PooledLane],
        name: str,
        function: Callable[..., Any],
        *args: Any,
        keeps: bool = False,
    ) -> Any:
        """Call a function in the worker of a value that stays there."""
        _, request = self._function_request(function, args, {}, keeps=keeps)
        if request.home is None or request.home.lane is not home.lane:
            if request.home is not None:
                msg = (
                    f"an argument of {name} is in worker {request.home.worker}, and its object in "
                    f"{home.worker}; fetch() brings a value"
                )
                raise ValueError(msg)
            request.home = home
        return self._engine.work.call(self._work(name, request, DEFAULT), raise_original=True)

    def _home_of(self, buffers: BoundBuffers) -> Home[PooledLane]:
        """Return the worker that has the values which arguments stand for."""
        home = home_of(buffers.references, self._engine)
        bound_to = None if self._home is None else self._home.lane
        if bound_to is not None and home.lane not in bound_to.neighbours:
            msg = (
                f"an argument is in worker {home.worker}, and the session {self._session_id!r} is "
                f"bound to {bound_to.worker.name}; fetch() brings its value"
            )
            raise ValueError(msg)
        return home

    def _submit(self, name: str, request: Request, **options: Any) -> CallFuture[Any]:
        item = self._work(name, request, DEFAULT, kind=FutureItem, **options)
        assert isinstance(item, FutureItem)
        return self._engine.futures.submit(item)

    def _function_request(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        keeps: bool = False,
    ) -> tuple[str, FunctionRequest]:
        """Check and pickle a function and its arguments; return its name as well."""
        self._engine.check_open()
        if not callable(fn):
            msg = f"submit() takes a function first, not {type(fn).__name__} {fn!r}"
            raise TypeError(msg)
        name = getattr(fn, "__qualname__", None) or type(fn).__name__
        self._engine.config.kernel.require_lane(f"{name}()")
        codec = self._engine.config.codec
        try:
            body, buffers = codec.dumps_call(fn, args, kwargs)
        except Exception as error:
            what = f"{name} or one of its arguments"
            parts = [part for part in (fn, *args, *kwargs.values()) if not codec.can_travel(part)]
            raise cannot_travel(codec, what, parts, error) from error
        home = self._home_of(buffers) if type(buffers) is BoundBuffers else None
        return name, FunctionRequest(body, buffers, home, keeps=keeps)

    def _submit_shared(self, shared: SharedFunction, args: tuple[Any, ...]) -> CallFuture[Any]:
        """Submit a call of a shared function; return its future."""
        self._engine.check_open()
        codec = self._engine.config.codec
        try:
            body, buffers = codec.dumps(args)
        except Exception as error:
            what = f"an item for {shared.name}"
            raise cannot_travel(codec, what, args, error) from error
        home = self._home_of(buffers) if type(buffers) is BoundBuffers else None
        request = SharedRequest(shared, body, buffers, home)
        return self._submit(shared.name, request, queue_timeout=None, bound=None)

    # -- cells ---------------------------------------------------------------------------------

    def run(
        self,
        code: str,
        *,
        timeout: Timeout = DEFAULT,
        worker: int | None = None,
        push: Mapping[str, Any] | None = None,
        pull: Iterable[str] = (),
        on_message: OnMessage | None = None,
        on_input: OnInput | None = None,
        max_value_bytes: int | None = None,
        priority: int | None = None,
        check: bool = False,
    ) -> CellResult:
        """Run a cell in a worker and return its result.

        Parameters
        ----------
        code
            Source of the cell: anything that a notebook cell may contain.
        timeout
            Seconds for the wait in the queue and the run; None for no limit. Default: the pool's.
        worker
            Number of the worker that is to run it. Default: the session's last one if it is
            free, else any.
        push
            Variables to set in that worker before the cell, by name.
        pull
            Names of variables to fetch from it afterwards, into the result's ``pulled``.
        on_message
            Called with each iopub message of the cell (a dictionary) as soon as it arrives.
        on_input
            Called, in this thread, with the prompt of each ``input()`` of the cell, and with
            whether the answer is a password; returns the answer. Default: ``input()`` is an error.
        max_value_bytes
            Size up to which the value of the last expression is fetched; a larger one is the
            result's ``value_error``. Default: the pool's ``max_value_bytes``.
        priority
            As for `call`.
        check
            Whether the exception of a cell that raised is raised here, as `CellResult.check` does.

        Returns
        -------
        CellResult
            A cell that raised gives a result too, unless ``check`` is set; its exception is
            ``error``.

        Raises
        ------
        CellError
            The cell raised, and ``check`` is set.
        CallTimeout, QueueTimeout, PoolSaturated, WorkerDied, SessionLost, WorkerBusy, PoolClosed
            As for `call`.
        NameError
            The cell has not defined a variable that ``pull`` names.

        Notes
        -----
        Ctrl-C interrupts the cell; the worker keeps its variables.
        """
        cell = self._cell(
            code, push, pull, on_message, on_input=on_input, max_value_bytes=max_value_bytes
        )
        work = self._work("a cell", None, timeout, slot=worker, purpose="cell", priority=priority)
        self._engine.page_messages.settle(self._session_id, work.deadline)
        result = self._engine.work.run_cell(work, cell)
        return checked(result) if check else result

    async def arun(
        self,
        code: str,
        *,
        timeout: Timeout = DEFAULT,
        worker: int | None = None,
        push: Mapping[str, Any] | None = None,
        pull: Iterable[str] = (),
        on_message: OnMessage | None = None,
        priority: int | None = None,
        check: bool = False,
    ) -> CellResult:
        """Run a cell as `run` does, without blocking the event loop.

        Cancelling the task interrupts the cell.
        """
        cell = self._cell(code, push, pull, on_message)
        work = self._work(
            *("a cell", None, timeout),
            slot=worker,
            purpose="cell",
            priority=priority,
            bound="max_futures",
        )
        await self._engine.page_messages.settle_async(self._session_id)
        result = await self._engine.work.arun_cell(work, cell)
        return checked(result) if check else result

    def run_all(
        self,
        code: str,
        *,
        timeout: Timeout = DEFAULT,
        push: Mapping[str, Any] | None = None,
        pull: Iterable[str] = (),
        on_message: OnMessage | None = None,
        check: bool = False,
    ) -> list[CellResult]:
        """Run a cell in every worker at the same time; return the results in their order.

        Ctrl-C interrupts the cell in all workers.

        Parameters
        ----------
        code, timeout, push, pull
            As for `run`.
        on_message
            As for `run`, but it is called from several threads, and each message has the number of
            its worker as ``message["worker"]``.
        check
            Whether the exception of the first cell that raised is raised here, when all workers
            have ended the cell. A note of it says in how many workers the cell raised.

        Raises
        ------
        CellError, CallTimeout, WorkerDied, NameError
            As for `run`; of several the first worker's.
        """
        results: list[CellResult] = []
        for outcome in self._run_all(code, timeout, push, pull, on_message).values():
            if isinstance(outcome, Exception):
                raise outcome
            results.append(outcome)
        if check:
            _check_all(results)
        return results

    def _run_all(
        self,
        code: str,
        timeout: Timeout,
        push: Mapping[str, Any] | None,
        pull: Iterable[str],
        on_message: OnMessage | None,
    ) -> dict[int, CellResult | Exception]:
        """Run a cell in every worker; return for each the result, or what it has raised."""
        if self._engine.is_own_thread:
            msg = "the callback of a future must not wait for all workers; use another thread"
            raise RuntimeError(msg)
        names = [pull] if isinstance(pull, str) else list(pull)  # for each cell, not once
        slots = self._workers()
        cells = {
            self._work("a cell", None, timeout, slot=slot, purpose="cell"): self._cell(
                code, push, names, _with_worker(on_message, slot)
            )
            for slot in slots
        }
        return dict(zip(slots, self._engine.work.run_cells(cells), strict=True))

    # -- namespaces ----------------------------------------------------------------------------

    def push(
        self, variables: Mapping[str, Any], *, worker: int | Literal["all"] | None = None
    ) -> None:
        """Set variables in workers, among the names of the session's cells.

        Workers that are started later do not have them.

        Parameters
        ----------
        variables
            Values by name.
        worker
            Number of the worker, or ``"all"``. Default: for a session as for `run`, for a pool all.
        """
        if worker is None and self._session_id is None:
            worker = "all"
        if worker == "all":
            request = self._function_request(namespace.push, (dict(variables),), {})
            self._apply_to_all(dict.fromkeys(self._workers(), request))
        else:
            self._apply(namespace.push, dict(variables), worker=worker)

    def pull(self, names: Iterable[str], *, worker: int | None = None) -> dict[str, Any]:
        """Return variables from a worker, from among the names of the session's cells.

        Raises
        ------
        NameError
            One of them is not defined there.
        """
        wanted = [names] if isinstance(names, str) else list(names)
        pulled: dict[str, Any] = self._apply(namespace.pull, wanted, worker=worker)
        return pulled

    def scatter(self, name: str, sequence: Any) -> None:
        """Give each worker a part of a sequence, as a variable of the session's cells.

        The parts are of the sequence's own kind and in its order, the first worker's first. Their
        lengths differ by one at most. Workers that are started later have none.

        Parameters
        ----------
        name
            Name of the variable.
        sequence
            What has a length and can be sliced: a list, a tuple, a range, an array (by its first
            axis), a frame (by rows).

        Raises
        ------
        TypeError
            It is no such sequence.
        ValueError
            The name cannot be that of a variable.
        """
        check_variable("scatter", name)
        workers = self._workers()
        part = namespace.Part(uuid.uuid4().hex, tuple(workers))
        parts = zip(workers, split(sequence, len(workers)), strict=True)
        self._apply_to_all(
            {
                worker: self._function_request(namespace.scatter, (name, value, part), {})
                for worker, value in parts
            }
        )

    def gather(self, name: str) -> Any:
        """Return a variable of all workers as one value, in the order of the workers.

        Parameters
        ----------
        name
            Name of the variable: one that `scatter` has set, or any other that the session's cells
            have defined in each worker.

        Returns
        -------
        object
            The parts, joined to a value of the first one's kind. What cannot be joined, numbers for
            example, gives a list with the value of each worker.

        Raises
        ------
        NameError
            A worker does not have the variable. A worker that was replaced after `scatter`, or was
            removed from the pool, has lost its part, and the error names it.
        TypeError
            The values are of different kinds.
        """
        check_variable("gather", name)
        request = self._function_request(namespace.gather, (name,), {})
        found: dict[int, namespace.Found] = self._apply_to_all(
            dict.fromkeys(self._workers(), request)
        )
        without_worker = {  # it has died, and the next one has not started yet
            slot.number: namespace.NOTHING
            for slot in self._engine.supervisor.slots
            if slot.number not in found
        }
        return join(name, complete(name, dict(sorted({**found, **without_worker}.items()))))

    def _workers(self) -> list[int]:
        """Return the numbers of all workers; raise the pool's error if it has none."""
        self._engine.check_open()
        slots = self._engine.housekeeping.slots()
        if not slots:
            raise PoolDegraded(self._engine.config.name, self._engine.supervisor.last_problem)
        return slots

    def _apply_to_all(self, requests: Mapping[int, tuple[str, FunctionRequest]]) -> dict[int, Any]:
        """Call a function in several workers at the same time; return the values by worker.

        An exception, also Ctrl-C, cancels the calls that have not ended.
        """
        self._engine.page_messages.settle(self._session_id, None)
        futures: dict[int, CallFuture[Any]] = {}
        try:
            for worker, (name, request) in requests.items():
                futures[worker] = self._submit(
                    name, request, slot=worker, purpose="cell", bound="max_futures"
                )
            return {worker: future.result() for worker, future in futures.items()}
        finally:
            for future in futures.values():
                future.cancel()

    def _apply(self, function: Callable[..., Any], *args: Any, worker: int | None) -> Any:
        name, request = self._function_request(function, args, {})
        work = self._work(name, request, DEFAULT, slot=worker, purpose="cell")
        self._engine.page_messages.settle(self._session_id, work.deadline)
        return self._engine.work.call(work, raise_original=True)

    # -- details -------------------------------------------------------------------------------

    def _cell(
        self,
        code: str,
        push: Mapping[str, Any] | None,
        pull: Iterable[str],
        on_message: OnMessage | None,
        *,
        on_input: OnInput | None = None,
        max_value_bytes: int | None = None,
    ) -> Cell:
        if not isinstance(code, str):
            msg = f"a cell is text, not {type(code).__name__}"
            raise TypeError(msg)
        names = [pull] if isinstance(pull, str) else list(pull)
        kernel = self._engine.config.kernel
        for option, given in (("push", push), ("pull", names)):
            if given:
                kernel.require_lane(option)
        is_shown = on_message is not None and kernel.has_lane
        return Cell(
            code=code,
            on_message=on_message,
            on_input=on_input,
            max_value_bytes=max_value_bytes,
            page_request=page_request() if is_shown else "",
            encode_value=kernel.has_lane,
            push=dict(push or {}),
            pull=names,
        )

    def _touch(self) -> None:
        """Refresh the session's expiry, because it has work. A pool has no expiry."""

    def _work(
        self,
        name: str,
        request: Request | None,
        timeout: Timeout,
        *,
        tool_timeout: float | None = None,
        queue_timeout: Timeout = DEFAULT,
        bound: Bound | None = "max_queue",
        slot: int | None = None,
        purpose: Purpose = "call",
        priority: int | None = None,
        idempotent: bool = False,
        kind: type[WorkItem] = WorkItem,
    ) -> WorkItem:
        if self._session_id is not None:
            self._touch()
        config = self._engine.config
        if timeout == DEFAULT:
            seconds = tool_timeout if tool_timeout is not None else config.timeout
        else:
            seconds = check_seconds("timeout", timeout)
        if queue_timeout == DEFAULT:
            is_patient = bound != "max_queue"
            queue_timeout = config.futures_queue_timeout if is_patient else config.queue_timeout
        return kind(
            name,
            request,
            session=self._session_id,
            timeout=seconds,
            queue_timeout=queue_timeout,
            bound=bound,
            slot=slot,
            purpose=purpose,
            host_call=current_host_call(),
            home=self._home if request is None or request.home is None else request.home,
            fails_fast=self._fails_fast,
            priority=self._priority if priority is None else check_priority(priority),
            idempotent=idempotent,
        )


def _with_worker(on_message: OnMessage | None, worker: int) -> OnMessage | None:
    """Return a callback whose messages have the number of their worker."""
    if on_message is None:
        return None
    return lambda message: on_message({**message, "worker": worker})


def _check_all(results: Sequence[CellResult]) -> None:
    """Raise the exceptions of cells that raised in several workers."""
    failed = [result for result in results if not result.ok]
    if len(failed) > 1:
        error = failed[0].error
        assert error is not None
        error.add_note(f"the cell raised in {len(failed)} of {len(results)} workers")
    if failed:
        checked(failed[0])


def run_everywhere(
    caller: Caller,
    code: str,
    *,
    timeout: Timeout = DEFAULT,
    push: Mapping[str, Any] | None = None,
    pull: Iterable[str] = (),
    on_message: OnMessage | None = None,
) -> dict[int, CellResult]:
    """Run a cell in every worker, as `Caller.run_all` does; return the results by worker.

    What ends the cell in one worker, `WorkerDied` for example, is the error of its result.
    """
    outcomes = caller._run_all(code, timeout, push, pull, on_message)  # noqa: SLF001 - its own
    return {
        worker: failed_result(outcome) if isinstance(outcome, Exception) else outcome
        for worker, outcome in outcomes.items()
    }


async def arun_everywhere(
    caller: Caller, code: str, *, on_message: OnMessage | None = None, **options: Any
) -> dict[int, CellResult]:
    """Run a cell as `run_everywhere` does, without blocking the event loop.

    Cancelling the task interrupts the cell in all workers.
    """
    workers = caller._workers()  # noqa: SLF001 - its own
    outcomes = await asyncio.gather(
        *(
            caller.arun(code, worker=worker, on_message=_with_worker(on_message, worker), **options)
            for worker in workers
        ),
        return_exceptions=True,
    )
    results: dict[int, CellResult] = {}
    for worker, outcome in zip(workers, outcomes, strict=True):
        if isinstance(outcome, CellResult):
            results[worker] = outcome
        elif isinstance(outcome, Exception):
            results[worker] = failed_result(outcome)
        else:
            raise outcome
    return results


def failed_result(error: Exception) -> CellResult:
    """Return the result of a cell that another exception than its own has ended."""
    if isinstance(error, CellError):
        return CellResult(error=error)
    name, text = type(error).__name__, str(error)
    worker = getattr(error, "worker", None) or ""
    return CellResult(error=CellError(name, text, [f"{name}: {text}"]), worker=worker)


def ask_worker(
    caller: Caller, kind: str, content: dict[str, Any], patience: float
) -> dict[str, Any] | None:
    """Ask the kernel of the worker that has had a session's last work for help with a cell.

    Parameters
    ----------
    caller
        The session.
    kind, content
        Type and content of the Jupyter request, ``complete_request`` for example.
    patience
        Seconds to wait for the reply. The worker is not interrupted when they have passed.

    Returns
    -------
    dict or None
        Content of the reply; None if the worker is busy or too slow, or the session has none.
    """
    work = WorkItem(
        "help with a cell",
        None,
        session=caller._session_id,  # noqa: SLF001 - one idea in two pieces
        timeout=None,
        queue_timeout=None,
        bound=None,
        purpose="cell",
    )
    request = ShellRequest(kind=kind, content=content)
    ask = caller._engine.work.ask_if_idle(work, request)  # noqa: SLF001
    if ask is None:
        return None
    replies: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def run() -> None:
        reply = None
        try:
            reply = ask()
        finally:
            replies.put(reply)

    threading.Thread(target=run, name="snakepit-help", daemon=True).start()
    try:
        return replies.get(timeout=patience)
    except queue.Empty:
        return None
