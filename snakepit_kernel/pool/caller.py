"""What a pool and its sessions have in common: calls, cells and functions."""

from __future__ import annotations

import concurrent.futures
import contextlib
import contextvars
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, ParamSpec, TypeVar, overload

from ..errors import ToolNotFound
from ..protocol import messages, values
from ..protocol.frames import Segment, pack
from ..protocol.messages import Apply, Call, Define, ToolInfo
from ..tools import namespace
from .cells import Cell, OnMessage
from .config import check_seconds
from .engine import Engine, MakeFrames
from .futures import CallFuture
from .results import CellResult
from .validation import Validator
from .work import Work
from .worker import Worker

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT: Final = "default"
"""Stands for: what the tool or the pool was told."""

Timeout = float | None | Literal["default"]


class Definitions:
    """The notebook's functions that are tools of a pool, ready to travel, each with a version."""

    def __init__(self) -> None:
        self._frames: dict[str, tuple[int, list[Segment]]] = {}
        self.infos: dict[str, ToolInfo] = {}
        self.validator = Validator()

    def add(self, info: ToolInfo, function: Callable[..., Any]) -> None:
        """Add a function, or replace it."""
        body, buffers = values.dumps(function)
        version = self._frames[info.name][0] + 1 if info.name in self._frames else 1
        self._frames[info.name] = (version, pack(messages.encode(Define(info.name)), body, buffers))
        self.infos[info.name] = info

    def missing(self, worker: Worker, name: str) -> list[Segment]:
        """Return the frame that a worker needs before it can call a tool, or nothing."""
        definition = self._frames.get(name)
        if definition is None or worker.defined.get(name) == definition[0]:
            return []
        worker.defined[name] = definition[0]
        return definition[1]


class Tools:
    """The tools of a pool as methods.

    Parameters
    ----------
    caller
        A pool or a session.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            info = self._caller._find_tool(name)  # noqa: SLF001 - one idea in two classes
        except ToolNotFound as error:
            raise AttributeError(str(error)) from error

        validator = self._caller._definitions.validator  # noqa: SLF001

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._caller._call(name, args, kwargs)  # noqa: SLF001

        call.__name__ = call.__qualname__ = name
        call.__doc__ = info.description
        call.__signature__ = validator.signature(info)  # type: ignore[attr-defined]
        return call

    def __getitem__(self, name: str) -> ToolInfo:
        return self._caller._find_tool(name)  # noqa: SLF001

    def __iter__(self) -> Any:
        return iter(self._caller.tool_names())

    def __len__(self) -> int:
        return len(self._caller.tool_names())

    def __dir__(self) -> list[str]:
        return [name for name in self._caller.tool_names() if name.isidentifier()]

    def _ipython_key_completions_(self) -> list[str]:
        return self._caller.tool_names()

    def __repr__(self) -> str:
        names = self._caller.tool_names()
        lines = [f"{name}{self[name].signature}" for name in names]
        return "\n".join(lines) or "no tools"


class _ToolsOfCaller:
    """The tools as methods: ``pool.tools.price(item="tea")``. Tab completes their names.

    A property would do, but IPython completes nothing behind one: it does not run its code.
    """

    @overload
    def __get__(self, caller: None, owner: type) -> _ToolsOfCaller: ...

    @overload
    def __get__(self, caller: Caller, owner: type) -> Tools: ...

    def __get__(self, caller: Caller | None, owner: type) -> _ToolsOfCaller | Tools:
        return self if caller is None else Tools(caller)


class Caller:
    """Calls tools, runs cells and submits functions; base of `Pool` and `Session`."""

    _engine: Engine
    _definitions: Definitions
    _session_id: str | None = None

    # -- tools ---------------------------------------------------------------------------------

    tools = _ToolsOfCaller()

    def call(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = DEFAULT,
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

        Raises
        ------
        ToolNotFound, InvalidArguments
            The call cannot be right; nothing ran.
        ToolError
            The tool raised; ``__cause__`` is the exception itself when it can travel.
        CallTimeout, QueueTimeout, PoolSaturated
            There was no time, or no room. After a CallTimeout the work was interrupted.
        WorkerDied
            The worker died under the call.
        PoolClosed
            The pool has ended.

        Notes
        -----
        Ctrl-C interrupts the call in its worker as well, and leaves the worker usable.
        What the tool prints is printed here.
        """
        return self._call(tool, (), dict(arguments or {}), timeout)

    async def acall(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = DEFAULT,
    ) -> Any:
        """Call a tool as `call` does, without blocking the event loop.

        Cancelling the task interrupts the tool.
        """
        work, make_frames = self._tool_work(tool, (), dict(arguments or {}), timeout)
        return await self._engine.acall(work, make_frames)

    def _call(
        self, tool: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: Timeout = DEFAULT
    ) -> Any:
        work, make_frames = self._tool_work(tool, args, kwargs, timeout)
        return self._engine.call(work, make_frames)

    def _tool_work(
        self, tool: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: Timeout
    ) -> tuple[Work, MakeFrames]:
        self._engine.check_open()
        info = self._find_tool(tool)
        self._definitions.validator.check(info, args, kwargs)
        body, buffers = _pickled(tool, args, kwargs)
        session = self._session_id

        def make_frames(worker: Worker, call_id: int) -> list[Segment]:
            header = messages.encode(Call(call_id, tool, session))
            return [*self._definitions.missing(worker, tool), *pack(header, body, buffers)]

        return self._work(tool, timeout, tool_timeout=info.timeout), make_frames

    def _find_tool(self, name: str) -> ToolInfo:
        info = self._definitions.infos.get(name) or self._engine.tools.get(name)
        if info is None:
            raise ToolNotFound(name, self.tool_names())
        return info

    def tool_names(self) -> list[str]:
        """Return the names of all tools."""
        return sorted({**self._engine.tools, **self._definitions.infos})

    # -- functions -----------------------------------------------------------------------------

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> CallFuture[T]:
        """Run a function in a worker; return its future.

        Parameters
        ----------
        fn
            Any function, also one that was defined in the notebook, or a coroutine function.
        args, kwargs
            Its arguments.

        Returns
        -------
        CallFuture
            Its exception is the function's own, with the worker's traceback as its cause.

        Raises
        ------
        TypeError
            The function or an argument cannot travel.
        PoolSaturated, PoolClosed
            The work was not accepted.
        """
        work, make_frames = self._function_work(fn, args, kwargs)
        return self._engine.submit(work, make_frames)

    def _function_work(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        patient: bool = False,
    ) -> tuple[Work, MakeFrames]:
        self._engine.check_open()
        if not callable(fn):
            msg = f"submit() takes a function first, not {type(fn).__name__} {fn!r}"
            raise TypeError(msg)
        name = getattr(fn, "__qualname__", None) or type(fn).__name__
        try:
            body, buffers = values.dumps((fn, args, kwargs))
        except Exception as error:
            msg = f"{name} or one of its arguments cannot travel to a worker: {error}"
            raise TypeError(msg) from error
        session = self._session_id

        def make_frames(_: Worker, call_id: int) -> list[Segment]:
            return pack(messages.encode(Apply(call_id, session)), body, buffers)

        work = self._work(
            name,
            DEFAULT,
            queue_timeout=None if patient else self._engine.config.futures_queue_timeout,
            bounded=not patient,
        )
        return work, make_frames

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
    ) -> CellResult:
        """Run a cell in a worker and return what it gave.

        Parameters
        ----------
        code
            The cell: anything that a notebook cell may hold.
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
            Gets each iopub message of the cell (a dictionary) the moment it arrives.

        Returns
        -------
        CellResult
            A cell that raised is a result too; its exception is ``error``.

        Raises
        ------
        CallTimeout, QueueTimeout, PoolSaturated, WorkerDied, PoolClosed
            As for `call`.

        Notes
        -----
        Ctrl-C interrupts the cell; the worker keeps its variables.
        """
        cell = _cell(code, push, pull, on_message)
        return self._engine.run_cell(self._work("a cell", timeout, slot=worker), cell)

    async def arun(
        self,
        code: str,
        *,
        timeout: Timeout = DEFAULT,
        worker: int | None = None,
        push: Mapping[str, Any] | None = None,
        pull: Iterable[str] = (),
        on_message: OnMessage | None = None,
    ) -> CellResult:
        """Run a cell as `run` does, without blocking the event loop.

        Cancelling the task interrupts the cell.
        """
        cell = _cell(code, push, pull, on_message)
        return await self._engine.arun_cell(self._work("a cell", timeout, slot=worker), cell)

    def run_all(
        self,
        code: str,
        *,
        timeout: Timeout = DEFAULT,
        push: Mapping[str, Any] | None = None,
        pull: Iterable[str] = (),
        on_message: OnMessage | None = None,
    ) -> list[CellResult]:
        """Run a cell in every worker at the same time; return the results in their order.

        Parameters are those of `run`. ``on_message`` is called from several threads.
        """
        names = list(pull)

        def run(slot: int) -> CellResult:
            return self.run(
                code, timeout=timeout, worker=slot, push=push, pull=names, on_message=on_message
            )

        slots = self._engine.slots()
        with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(slots))) as threads:
            # Each in a copy of the context, by which the notebook knows the cell of an output.
            contexts = [contextvars.copy_context() for _ in slots]
            running = [
                threads.submit(context.run, run, slot)
                for context, slot in zip(contexts, slots, strict=True)
            ]
            return [future.result() for future in running]

    # -- namespaces ----------------------------------------------------------------------------

    def push(self, variables: Mapping[str, Any], *, worker: int | None = None) -> None:
        """Set variables in the namespace of a worker's cells.

        Parameters
        ----------
        variables
            Values by name.
        worker
            Number of the worker. Default: as for `run`.
        """
        self._apply(namespace.push, dict(variables), worker=worker)

    def pull(self, names: Iterable[str], *, worker: int | None = None) -> dict[str, Any]:
        """Return variables from the namespace of a worker's cells.

        Raises
        ------
        NameError
            One of them is not defined there.
        """
        wanted = [names] if isinstance(names, str) else list(names)
        pulled: dict[str, Any] = self._apply(namespace.pull, wanted, worker=worker)
        return pulled

    def _apply(self, function: Callable[..., Any], *args: Any, worker: int | None) -> Any:
        _, make_frames = self._function_work(function, args, {})
        work = self._work(function.__name__, DEFAULT, slot=worker)
        return self._engine.call(work, make_frames, raise_original=True)

    # -- details -------------------------------------------------------------------------------

    def _work(
        self,
        name: str,
        timeout: Timeout,
        *,
        tool_timeout: float | None = None,
        queue_timeout: Timeout = DEFAULT,
        bounded: bool = True,
        slot: int | None = None,
    ) -> Work:
        config = self._engine.config
        if timeout == DEFAULT:
            seconds = tool_timeout if tool_timeout is not None else config.timeout
        else:
            seconds = check_seconds("timeout", timeout)
        return Work(
            name,
            session=self._session_id,
            timeout=seconds,
            queue_timeout=config.queue_timeout if queue_timeout == DEFAULT else queue_timeout,
            bounded=bounded,
            slot=slot,
        )


def _cell(
    code: str,
    push: Mapping[str, Any] | None,
    pull: Iterable[str],
    on_message: OnMessage | None,
) -> Cell:
    if not isinstance(code, str):
        msg = f"a cell is text, not {type(code).__name__}"
        raise TypeError(msg)
    names = [pull] if isinstance(pull, str) else list(pull)
    return Cell(code=code, on_message=on_message, push=dict(push or {}), pull=names)


def _pickled(
    tool: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[bytes, list[memoryview]]:
    """Pickle the arguments of a tool before a worker is taken.

    Raises
    ------
    TypeError
        An argument cannot travel; it is named.
    """
    try:
        return values.dumps((tuple(args), dict(kwargs)))
    except Exception as error:
        named = [(f"argument {i + 1}", value) for i, value in enumerate(args)]
        named += [(f"argument {name!r}", value) for name, value in kwargs.items()]
        culprits = [label for label, value in named if not _can_travel(value)]
        which = ", ".join(culprits) or "an argument"
        msg = f"{which} of {tool} cannot travel to a worker: {error}"
        raise TypeError(msg) from error


def _can_travel(value: object) -> bool:
    with contextlib.suppress(Exception):
        values.dumps(value)
        return True
    return False
