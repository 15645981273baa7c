"""Server of the calls of one lane, in the thread of one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from ..lane import replies
from ..lane.control_page import ControlPage
from ..lane.shared_memory import TRIM_AFTER
from ..lane.worker_end import WorkerLane
from ..processes import children
from ..protocol import messages
from ..protocol.encoders import encoders
from ..protocol.frames import Frame, pack
from ..protocol.sources import sources
from ..tools.context import (
    SessionContext,
    begin_call,
    context_of_call,
    context_of_cells,
    end_call,
    enter_call,
)
from ..tools.registry import AdapterError, ToolRegistry
from .autoreload import Autoreload
from .event_loops import EventLoops
from .host_calls import HostCalls
from .interrupts import InterruptRouter
from .name_advice import add_name_advice
from .output import Output
from .references import keeping
from .search_path import add_import_advice
from .session_isolation import SessionIsolation
from .streams import StreamSender

OnMessage = Callable[[messages.ToWorker, Frame], None]

CallMessage = messages.Call | messages.Apply
_CALLS = (messages.Call, messages.Apply)


class CallServer:
    """Runs the calls that arrive on a lane, and sends their answers.

    Parameters
    ----------
    sock, page, number
        The worker's end of the lane, its control page, and the lane's number.
    loop
        The loop that reads the lane.
    registry
        The tools.
    interrupts, make_output
        Make the interrupt router and the output of this lane's calls.
    finish
        Shows, at the end of a call, what is shown then: open figures, for example.
    on_message
        Gets the messages that are not calls.
    on_close
        Called once when the owner has closed its end or died.
    isolation
        Switches the process between sessions.

    Attributes
    ----------
    lane, host_calls, output, interrupts
        Its parts.
    """

    def __init__(
        self,
        sock: socket.socket,
        page: ControlPage,
        number: int,
        loop: asyncio.AbstractEventLoop,
        registry: ToolRegistry,
        *,
        interrupts: type[InterruptRouter],
        make_output: Callable[[WorkerLane, int], Output],
        finish: Callable[[], None],
        on_message: OnMessage,
        on_close: Callable[[], None],
        isolation: SessionIsolation,
    ) -> None:
        control = page.control(number)
        marshaller = page.marshaller(number, is_owner=False)
        self.lane = WorkerLane(sock, marshaller, self._on_frame, on_close)
        self.host_calls = HostCalls(self.lane, lambda: control.serves_cell)
        self.output = make_output(self.lane, number)
        self._finish = finish
        self.interrupts = interrupts(control)
        self._control = control
        self._loop = loop
        self._registry = registry
        self._isolation = isolation
        self._functions: dict[int, Callable[..., Any]] = {}  # shared by several calls
        self._loops = EventLoops(None if number else loop)  # the first is the main thread's
        self._before_next_call: deque[tuple[messages.ToWorker, Frame]] = deque()
        self.autoreload: Autoreload | None = None
        self._on_message = on_message
        self._senders: dict[int, StreamSender] = {}
        self._cell_calls: set[int] = set()  # calls that belong to a cell: `finish` is not called
        self._tasks: set[asyncio.Task[None]] = set()
        self._queued: deque[tuple[CallMessage, Frame]] = deque()  # calls not begun yet
        self._is_busy = False
        self._recalled_call = 0
        self._trimmer: asyncio.TimerHandle | None = None
        os.register_at_fork(after_in_child=self._queued.clear)

    @property
    def is_free(self) -> bool:
        """Whether no call runs, not even one that awaits something."""
        return not self._tasks

    def open(self) -> None:
        """Begin to serve. Called in the loop's thread."""
        self.lane.attach(self._loop)

    # -- frames in -----------------------------------------------------------------------------

    def _on_frame(self, frame: Frame) -> Callable[[], None] | None:
        message = messages.decode_for_worker(frame.header)
        if isinstance(message, _CALLS):
            if not message.inside:
                self._queued.append((message, frame))
                if self.lane.is_own_thread:
                    return self._run_next
                self._loop.call_soon_threadsafe(self._run_next)  # a tool's thread has read it
                return None
            answer = functools.partial(self._answer, message, frame)
            if self.lane.is_own_thread:
                return answer
            self.lane.run_in_own_thread(answer)
            return None
        return self._handle(message, frame)

    def _handle(self, message: messages.ToWorker, frame: Frame) -> Callable[[], None] | None:
        match message:
            case messages.Result() | messages.Failure():
                self.host_calls.receive_reply(message, frame)
            case messages.Credit(id=call_id, count=count):
                if call_id in self._senders:
                    self._senders[call_id].add_credit(count)
            case messages.CancelStream(id=call_id):
                if call_id in self._senders:
                    self._senders[call_id].cancel()
            case (
                messages.Define()
                | messages.Encode()
                | messages.Prepare()
                | messages.Release()
                | messages.ShowLines()
                | messages.Follow()
                | messages.Forget()
            ):
                # A tool's thread, or a signal handler, may have read it while a call runs.
                self._before_next_call.append((message, frame))
            case _:
                return functools.partial(self._on_message, message, frame)
        return None

    def _run_next(self) -> None:
        """Run the queued calls, one after the other."""
        while not self._is_busy and self._queued:
            try:
                call = self._queued.popleft()
            except IndexError:  # a signal came, and its handler returned them to the owner
                break
            self._is_busy = True
            try:
                self._answer(*call)
            finally:
                self._is_busy = bool(self._tasks)
        if self.lane.marshaller.is_warm and self._trimmer is None:
            self._trimmer = self._loop.call_later(TRIM_AFTER, self._trim)

    def _trim(self) -> None:
        """Release memory that was needed to send large values, when the lane is idle."""
        self._trimmer = None
        if not self._is_busy and self.lane.is_idle(TRIM_AFTER):
            self.lane.marshaller.trim()
        if self.lane.marshaller.is_warm:
            self._trimmer = self._loop.call_later(TRIM_AFTER, self._trim)

    def return_unstarted(self) -> None:
        """Return unstarted calls to the owner, if it has asked; called by a signal handler."""
        recalled = self._control.recalled_call
        if recalled == self._recalled_call:
            return
        self._recalled_call = recalled
        self.lane.handle_arrived(self._keep)
        ids = []
        with contextlib.suppress(IndexError):  # the lane's own thread takes calls as well
            while self._queued[0][0].id <= recalled:
                ids.append(self._queued.popleft()[0].id)
        self.lane.send(pack(messages.encode(messages.Requeued(ids))))
        if self._queued:
            self._loop.call_soon_threadsafe(self._run_next)

    def _keep(self, frame: Frame) -> None:
        """Keep what a signal handler has received, for whoever would have received it."""
        message = messages.decode_for_worker(frame.header)
        if not isinstance(message, _CALLS):
            if (act := self._handle(message, frame)) is not None:
                self._loop.call_soon_threadsafe(act)
        elif message.inside:  # another call waits for it
            self.lane.run_in_own_thread(functools.partial(self._answer, message, frame))
        else:
            self._queued.append((message, frame))

    def _handle_before_call(self) -> None:
        """Handle the messages that precede the next call, in the order of their arrival."""
        while self._before_next_call:
            message, frame = self._before_next_call.popleft()
            match message:
                case messages.Define():
                    self._define(message, frame)
                case messages.Encode():
                    encoders.add(*self.lane.marshaller.load(message, frame))
                case messages.Prepare():
                    self._prepare_function(message, frame)
                case messages.Release(numbers=numbers):
                    for number in numbers:
                        self._functions.pop(number, None)
                case messages.ShowLines(files=files):
                    sources.receive(files)
                case messages.Forget(session=session, number=number):
                    self._isolation.forget(session, number)
                case _:
                    self._on_message(message, frame)

    def _define(self, message: messages.Define, frame: Frame) -> None:
        try:
            self._registry.define(message.name, self.lane.marshaller.load(message, frame))
        except BaseException as error:  # noqa: BLE001 - raised by the call that follows
            self._registry.mark_broken(message.name, error)

    def _prepare_function(self, message: messages.Prepare, frame: Frame) -> None:
        try:
            self._functions[message.number] = self.lane.marshaller.load(message, frame)
        except BaseException as error:  # noqa: BLE001 - raised by the calls that follow
            self._functions[message.number] = functools.partial(_raise, error)

    # -- calls ---------------------------------------------------------------------------------

    def _answer(self, call: CallMessage, frame: Frame) -> None:
        if self._before_next_call:
            self._handle_before_call()
        if self.autoreload is not None:
            self.autoreload.reload_changed()
        if not call.inside:
            self._answer_in_session(call, frame)
            return
        before = self._isolation.current
        try:
            self._answer_in_session(call, frame)
        finally:
            self._isolation.switch_to(before)

    def _answer_in_session(self, call: CallMessage, frame: Frame) -> None:
        base = context_of_cells()
        call_context = SessionContext(
            call.session,
            base.pool,
            base.worker,
            self.host_calls,
            call.id,
            correlation_id=call.correlation,
            output=self.output,
        )
        try:
            self._isolation.switch_to(call.session)
            ready, is_async = self._prepare(call, frame, call_context)
        except BaseException as error:  # noqa: BLE001 - unpickling runs any code; the caller gets the error
            _exit_if_child(error)
            add_import_advice(error, base.worker)
            self.lane.send(
                replies.with_error(self.lane.marshaller, call.id, error, before_running=True)
            )
            return
        if children.is_child:
            _exit_if_child()
        loop = asyncio._get_running_loop()  # noqa: SLF001 - public in asyncio.events
        if not is_async:
            self._run(call.id, ready, call_context, loop)
        elif loop is None:  # inside another call, whose thread waits
            self._run_in_own_loop(self._run_async(call.id, ready, call_context))
        else:
            task = loop.create_task(self._run_async(call.id, ready, call_context))
            self._tasks.add(task)
            task.add_done_callback(self._end_task)

    def _end_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._is_busy = bool(self._tasks)
        self._run_next()

    def _prepare(
        self, call: CallMessage, frame: Frame, call_context: SessionContext
    ) -> tuple[Callable[[], Any], bool]:
        """Return the function that runs a call, and whether it returns an awaitable."""
        if isinstance(call, messages.Apply):
            if call.function:
                prepared = self._functions[call.function]
                return functools.partial(prepared, *self.lane.marshaller.load(call, frame)), False
            function, args, kwargs = self.lane.marshaller.load(call, frame)
            if call.belongs_to_cell:
                self._cell_calls.add(call.id)
            ready: Callable[[], Any] = functools.partial(function, *args, **kwargs)
            is_async = inspect.iscoroutinefunction(function)
            return (keeping(ready, is_async=is_async) if call.keeps else ready), is_async
        tool = self._registry.get(call.tool)
        args, kwargs = self.lane.marshaller.load(call, frame)
        ready = tool.bind(call_context, args, kwargs)
        if tool.streams:
            ready = self._streaming(call, ready, is_async=tool.is_async)
        elif call.keeps:
            ready = keeping(ready, is_async=tool.is_async)
        return ready, tool.is_async

    def _streaming(
        self, call: messages.Call, ready: Callable[[], Any], *, is_async: bool
    ) -> Callable[[], Any]:
        if not call.credit:
            msg = f"tool {call.tool!r} streams, and was called for one value"
            raise AdapterError(msg)
        sender = self._senders[call.id] = StreamSender(
            call.id, call.credit, self.lane, self._control
        )
        if is_async:
            return lambda: sender.drain_async(ready())
        return lambda: sender.drain(ready())

    def _run(
        self,
        call_id: int,
        ready: Callable[[], Any],
        call_context: SessionContext,
        outer: asyncio.AbstractEventLoop | None,
    ) -> None:
        before = context_of_call()
        self._begin(call_id, call_context)
        # To its author a tool is a plain function: inside it, asyncio.run() must work.
        asyncio._set_running_loop(None)  # noqa: SLF001
        self._loops.begin()
        try:
            value = self.interrupts.run(call_id, ready)
        except BaseException as error:  # noqa: BLE001 - the edge of a request: the error is the answer
            _exit_if_child(error)
            self._loops.end()
            asyncio._set_running_loop(outer)  # noqa: SLF001
            self._send_error(call_id, error, lingers=self._end(call_id, call_context))
        else:
            if children.is_child:
                _exit_if_child()
            self._loops.end()
            asyncio._set_running_loop(outer)  # noqa: SLF001
            lingers = self._end(call_id, call_context)
            self.lane.send(
                replies.encode_value(self.lane.marshaller, call_id, value, lingers=lingers)
            )
        finally:
            enter_call(before)

    def _run_in_own_loop(self, running: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in its own loop, which reads the lane as well."""
        self._loops.begin()
        try:
            with asyncio.Runner() as runner, self.lane.also_read_in(runner.get_loop()):
                runner.run(running)
        finally:
            self._loops.end()

    async def _run_async(
        self, call_id: int, ready: Callable[[], Any], call_context: SessionContext
    ) -> None:
        self._begin(call_id, call_context)  # the context variables are this task's own
        session = call_context.session_id
        awaited = functools.partial(_await_in_parent, ready)
        within = functools.partial(self._isolation.within, session, awaited)
        policy = self._loops.begin_awaited()
        try:
            value = await self.interrupts.run_async(call_id, within)
            self._isolation.switch_to(session)  # the value is pickled there
        except BaseException as error:  # noqa: BLE001 - the edge of a request: the error is the answer
            self._loops.end_awaited(policy)
            self._end(call_id, call_context)
            self._send_error(call_id, error, lingers=True)
        else:
            self._loops.end_awaited(policy)
            self._end(call_id, call_context)  # tasks that the call has started may go on
            self.lane.send(replies.encode_value(self.lane.marshaller, call_id, value, lingers=True))

    def _send_error(self, call_id: int, error: BaseException, *, lingers: bool) -> None:
        """Answer a call that raised."""
        add_name_advice(error, self._isolation, self._registry, is_of_cell=False)
        was_interrupted = call_id in {self.interrupts.interrupted, self.host_calls.interrupted}
        answer = replies.with_error(
            self.lane.marshaller, call_id, error, is_own=not was_interrupted, lingers=lingers
        )
        self.lane.send(answer)

    def _begin(self, call_id: int, call_context: SessionContext) -> None:
        begin_call(call_context)
        self.host_calls.begin(call_id)
        self.output.begin(call_id)
        self._isolation.print_notice()

    def _end(self, call_id: int, call_context: SessionContext) -> bool:
        """End a call; return whether threads that it has started go on."""
        if self._cell_calls and call_id in self._cell_calls:
            self._cell_calls.remove(call_id)
        else:
            self._finish()
        if self.autoreload is not None:
            self.autoreload.note_imported()  # before the answer: the user may edit them after it
        lingers = end_call(call_context)
        self.output.end(call_id)
        self.host_calls.end(call_id)
        if self._senders:
            self._senders.pop(call_id, None)
        return lingers


def _raise(error: BaseException, *_: object) -> None:
    raise error


def _exit_if_child(error: BaseException | None = None) -> None:
    """Exit if this is a child that the call's code has forked: it must not answer."""
    if children.is_child:
        children.end(error)


async def _await_in_parent(ready: Callable[[], Any]) -> Any:
    """Await a call; exit in children that it has forked."""
    try:
        value = await ready()
    except BaseException as error:
        _exit_if_child(error)
        raise
    _exit_if_child()
    return value
