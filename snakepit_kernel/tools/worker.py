"""A worker: serves the calls of its pool on the main thread of its kernel."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import inspect
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tornado.ioloop import IOLoop

from .._version import __version__
from ..errors import InvalidArguments, ToolNotFound
from ..kernel.app import LANE_OPTION
from ..lane.page import Page
from ..lane.worker import CallOutput, Interrupts, WorkerLane
from ..processes import activity
from ..protocol import messages, values
from ..protocol.frames import Frame, pack
from .channels import Channels
from .context import SessionContext, enter_call, enter_worker
from .registry import ToolRegistry

if TYPE_CHECKING:
    from ..kernel.kernel import SnakepitKernel


def run(argv: Sequence[str]) -> None:
    """Be the worker at the end of a lane, until its owner closes that.

    Parameters
    ----------
    argv
        The kernel's arguments. One is ``--lane=FD:FD``: the socket, and the page beside it.
    """
    (lane,) = (argument for argument in argv if argument.startswith(LANE_OPTION))
    sock_fd, _, page_fd = lane.removeprefix(LANE_OPTION).partition(":")
    for descriptor in (int(sock_fd), int(page_fd)):
        os.set_inheritable(descriptor, False)
    activity.begin_cell()  # until the pool can use us: others prepare themselves later
    main_loop = IOLoop.current()
    loop: asyncio.AbstractEventLoop = main_loop.asyncio_loop  # type: ignore[attr-defined]
    worker = Worker(socket.socket(fileno=int(sock_fd)), Page(int(page_fd)), loop, argv)
    loop.call_soon(worker.open)  # when this runs, the main loop does
    with contextlib.suppress(KeyboardInterrupt):
        main_loop.start()
    worker.channels.close()


class Worker:
    """Runs what arrives on the lane, one call at a time.

    Parameters
    ----------
    sock, page
        The worker's end of the lane.
    loop
        The main loop.
    argv
        The kernel's arguments.

    Attributes
    ----------
    channels
        The rest of the kernel.
    """

    def __init__(
        self,
        sock: socket.socket,
        page: Page,
        loop: asyncio.AbstractEventLoop,
        argv: Sequence[str],
    ) -> None:
        self._loop = loop
        self._lane = WorkerLane(sock, self._take, self._stop)
        self._output = _RedirectedOutput(self._lane)
        self._interrupts = Interrupts(page)
        self._registry = ToolRegistry()
        self._context = SessionContext(session_id=None, pool="", worker="")
        self._undefined: dict[str, BaseException] = {}  # functions that could not be restored
        self._tasks: set[asyncio.Task[None]] = set()
        self.channels = Channels(
            argv,
            loop,
            rests=self._lane.rests,
            is_free=lambda: not self._tasks,
            adopt=self._adopt,
        )

    def open(self) -> None:
        """Say hello: from now on calls are served."""
        self._interrupts.install()
        self.channels.offer_shell(self._build_in_call)
        self._send(messages.Hello(os.getpid(), __version__))
        self._lane.attach(self._loop)

    def _adopt(self, kernel: SnakepitKernel) -> None:
        """Take in the kernel that was built around us."""
        kernel.heeds_interrupt = self._interrupts.is_news

    def _build_in_call(self) -> None:
        """Build the rest of the kernel in the middle of a call, which must not notice."""
        running = asyncio._get_running_loop()  # noqa: SLF001 - public in asyncio.events
        asyncio._set_running_loop(self._loop)  # noqa: SLF001
        try:
            with self._output.aside():
                self.channels.build_now()
        finally:
            asyncio._set_running_loop(running)  # noqa: SLF001

    def _stop(self) -> None:
        """End this kernel in the polite way, with its exit hooks: the owner closed the lane."""
        self._loop.call_soon(self._loop.stop)

    # -- frames in -----------------------------------------------------------------------------

    def _take(self, frame: Frame) -> None:
        match messages.decode_for_worker(frame.header):
            case messages.Call() | messages.Apply() as call:
                self._answer(call, frame)
            case messages.Define(name=name):
                self._define(name, frame)
            case messages.Configure(id=call_id):
                self._configure(call_id, frame)
            case messages.Assign(worker=name):
                self._context = enter_worker(self._context.pool, name)
            case messages.OpenChannels(id=call_id):
                self._open_channels(call_id)

    def _configure(self, call_id: int, frame: Frame) -> None:
        try:
            setup: messages.WorkerSetup = values.loads(frame.body, frame.buffers)
            find_modules_here()
            sys.path += [entry for entry in setup.import_path if entry not in sys.path]
            self._context = enter_worker(setup.pool, setup.worker)
            failed = {name: problem for name in setup.preload if (problem := _preload(name))}
            self._registry.load(setup.adapter)
        except BaseException as error:  # noqa: BLE001 - importing runs any code; the pool must hear of it
            self._fail(call_id, error)
        else:
            self._send(messages.Configured(call_id, self._registry.infos(), failed))
            activity.end_cell()
            self.channels.build_soon()

    def _open_channels(self, call_id: int) -> None:
        try:
            self.channels.build_now()
        except BaseException as error:  # noqa: BLE001 - users' startup files run any code
            self._fail(call_id, error)
        else:
            self._reply(call_id, None)

    def _define(self, name: str, frame: Frame) -> None:
        try:
            self._registry.define(name, values.loads(frame.body, frame.buffers))
        except BaseException as error:  # noqa: BLE001 - told by the call that follows
            self._undefined[name] = error
        else:
            self._undefined.pop(name, None)

    def _answer(self, call: messages.Call | messages.Apply, frame: Frame) -> None:
        context = self._context
        if call.session is not None:
            context = SessionContext(
                session_id=call.session, pool=context.pool, worker=context.worker
            )
        try:
            ready, is_async = self._prepare(call, frame, context)
        except BaseException as error:  # noqa: BLE001 - unpickling runs any code; the caller must hear of it
            self._fail(call.id, error, before_running=True)
            return
        if is_async:
            task = self._loop.create_task(self._run_async(call.id, ready, context))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._run(call.id, ready, context)

    def _prepare(
        self, call: messages.Call | messages.Apply, frame: Frame, context: SessionContext
    ) -> tuple[Callable[[], Any], bool]:
        if isinstance(call, messages.Apply):
            function, args, kwargs = values.loads(frame.body, frame.buffers)
            return functools.partial(function, *args, **kwargs), inspect.iscoroutinefunction(
                function
            )
        if call.tool in self._undefined:
            raise self._undefined[call.tool]
        args, kwargs = values.loads(frame.body, frame.buffers)
        tool = self._registry.get(call.tool)
        return tool.bind(context, args, kwargs), tool.is_async

    def _run(self, call_id: int, ready: Callable[[], Any], context: SessionContext) -> None:
        enter_call(context)
        self._output.begin(call_id)
        # A tool is a plain function to its author: inside it, asyncio.run() must work.
        asyncio._set_running_loop(None)  # noqa: SLF001 - public in asyncio.events, for event loops
        try:
            value = self._interrupts.run(call_id, ready)
        except BaseException as error:  # noqa: BLE001 - the edge of a request: it answers
            asyncio._set_running_loop(self._loop)  # noqa: SLF001
            self._output.end()
            self._fail(call_id, error)
        else:
            asyncio._set_running_loop(self._loop)  # noqa: SLF001
            self._output.end()
            self._reply(call_id, value)
        finally:
            enter_call(self._context)

    async def _run_async(
        self, call_id: int, ready: Callable[[], Any], context: SessionContext
    ) -> None:
        enter_call(context)  # of this task alone
        self._output.begin(call_id)
        try:
            value = await self._interrupts.run_async(call_id, ready)
        except BaseException as error:  # noqa: BLE001 - the edge of a request: it answers
            self._output.end()
            self._fail(call_id, error)
        else:
            self._output.end()
            self._reply(call_id, value)

    # -- frames out ----------------------------------------------------------------------------

    def _reply(self, call_id: int, value: object) -> None:
        try:
            body, buffers = values.dumps(value)
        except Exception as error:  # noqa: BLE001 - pickling runs any code
            kind = type(value)
            problem = TypeError(
                f"the result, a {kind.__module__}.{kind.__qualname__}, cannot travel: {error}"
            )
            problem.__cause__ = error
            self._fail(call_id, problem)
            return
        self._lane.send(pack(messages.encode(messages.Result(call_id)), body, buffers))

    def _fail(self, call_id: int, error: BaseException, *, before_running: bool = False) -> None:
        kind: Any = "raised"
        problems: list[str] = []
        if isinstance(error, KeyboardInterrupt):
            kind = "interrupted"
        elif before_running and isinstance(error, InvalidArguments):
            kind, problems = "arguments", list(error.problems)
        elif before_running and isinstance(error, ToolNotFound):
            kind, problems = "tool", list(error.known)
        message = messages.Failure(
            id=call_id,
            kind=kind,
            type_name=type(error).__name__,
            message=_text_of(error),
            traceback=_traceback_of(error),
            problems=problems,
        )
        try:
            body, buffers = values.dumps(error)
        except Exception:  # noqa: BLE001 - exceptions often hold what cannot travel; the text does
            body, buffers = b"", []
        self._lane.send(pack(messages.encode(message), body, buffers))

    def _send(self, message: messages.FromWorker) -> None:
        self._lane.send(pack(messages.encode(message)))


class _RedirectedOutput:
    """Sends what a call prints along the lane, for as long as the call runs."""

    def __init__(self, lane: WorkerLane) -> None:
        self._stdout = CallOutput(lane, "stdout")
        self._stderr = CallOutput(lane, "stderr")
        self._saved: tuple[Any, Any] | None = None

    def begin(self, call_id: int) -> None:
        self._stdout.call_id = self._stderr.call_id = call_id
        self._saved = (sys.stdout, sys.stderr)
        sys.stdout = self._stdout
        sys.stderr = self._stderr

    def end(self) -> None:
        self._stdout.flush()
        self._stderr.flush()
        if self._saved is not None:
            sys.stdout, sys.stderr = self._saved
            self._saved = None

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Give way for a moment to who changes the streams."""
        if self._saved is None:
            yield
            return
        redirected = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = self._saved
        try:
            yield
        finally:
            self._saved = sys.stdout, sys.stderr
            sys.stdout, sys.stderr = redirected


def find_modules_here() -> None:
    """Look for modules in the working directory too, where IPython puts it: behind Python's own."""
    if "" in sys.path:
        return
    places = [
        number
        for number, entry in enumerate(sys.path)
        if os.path.basename(entry) in {"site-packages", "dist-packages"}  # noqa: PTH119
    ]
    sys.path.insert(min(places, default=len(sys.path)), "")


def _preload(name: str) -> str:
    """Import a module; return why that failed, or nothing."""
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - importing runs any code; a worker works without it
        return f"{type(error).__name__}: {error}"
    return ""


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide the error
        return "(its text cannot be shown)"


def _traceback_of(error: BaseException) -> str:
    """Format a traceback without the frames of this module."""
    try:
        formatted = traceback.TracebackException.from_exception(error)
        stack = formatted.stack
        own = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120
        while len(stack) > 1 and stack[0].filename.startswith(own):
            stack.pop(0)
        return "".join(formatted.format())
    except Exception:  # noqa: BLE001 - as above
        return f"{type(error).__name__}: (its traceback cannot be shown)\n"
