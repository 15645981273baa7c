"""Serving the calls of one lane, in the thread of one event loop."""

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
from .output import Output
from .search_path import advise
from .session_isolation import SessionIsolation
from .streams import StreamSender

OnMessage = Callable[[messages.ToWorker, Frame], None]

CallMessage = messages.Call | messages.Apply
_CALLS = (messages.Call, messages.Apply)


class CallServer:
    """Answers what arrives on a lane.

    Parameters
    ----------
    sock, page, number
        The worker's end of the lane, the page beside it, and which of its lanes this is.
    loop
        The loop that reads it.
    registry
        The tools.
    interrupts, make_output
        How calls of this thread are interrupted, and where what they show goes.
    finish
        Shows what a call has left to be shown at its end.
    on_message
        Gets the messages that are no calls.
    on_close
        Called once when the owner has closed its end or died.
    surroundings
        What calls of each session find around them.

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
        slot = page.slot(number)
        marshaller = page.marshaller(number, is_owner=False)
        self.lane = WorkerLane(sock, marshaller, self._take, on_close)
        self.host_calls = HostCalls(self.lane, lambda: slot.serves_cell)
        self.output = make_output(self.lane, number)
        self._finish = finish
        self.interrupts = interrupts(slot)
        self._slot = slot
        self._loop = loop
        self._registry = registry
        self._isolation = isolation
        self._functions: dict[int, Callable[..., Any]] = {}  # that several calls run
        self._loops = EventLoops(None if number else loop)  # the first is the main thread's
        self._before_next: deque[tuple[messages.ToWorker, Frame]] = deque()
        self.autoreload: Autoreload | None = None
        self._on_message = on_message
        self._senders: dict[int, StreamSender] = {}
        self._of_cells: set[int] = set()  # calls at whose end nothing is shown
        self._tasks: set[asyncio.Task[None]] = set()
        self._put_off: deque[tuple[CallMessage, Frame]] = deque()  # calls that have not begun
        self._is_busy = False
        self._recalled_call = 0
        self._trimmer: asyncio.TimerHandle | None = None
        os.register_at_fork(after_in_child=self._put_off.clear)

    @property
    def is_free(self) -> bool:
        """Whether no call runs, not even one that awaits something."""
        return not self._tasks

    def open(self) -> None:
        """Serve from now on. Called in the loop's thread."""
        self.lane.attach(self._loop)

    # -- frames in -----------------------------------------------------------------------------

    def _take(self, frame: Frame) -> Callable[[], None] | None:
        message = messages.decode_for_worker(frame.header)
        if isinstance(message, _CALLS):
            if not message.inside:
                self._put_off.append((message, frame))
                if self.lane.is_own_thread:
                    return self._run_next
                self._loop.call_soon_threadsafe(self._run_next)  # a thread of a tool has read it
                return None
            answer = functools.partial(self._answer, message, frame)
            if self.lane.is_own_thread:
                return answer
            self.lane.hand_over(answer)
            return None
        return self._take_other(message, frame)

    def _take_other(self, message: messages.ToWorker, frame: Frame) -> Callable[[], None] | None:
        match message:
            case messages.Result() | messages.Failure():
                self.host_calls.take(message, frame)
            case messages.Credit(id=call_id, count=count):
                if call_id in self._senders:
                    self._senders[call_id].add_room(count)
            case messages.CancelStream(id=call_id):
                if call_id in self._senders:
                    self._senders[call_id].leave()
            case (
                messages.Define()
                | messages.Encode()
                | messages.Prepare()
                | messages.Release()
                | messages.Follow()
                | messages.Forget()
            ):
                # A thread of a tool may have read it, or a signal handler, while a call runs.
                self._before_next.append((message, frame))
            case _:
                return functools.partial(self._on_message, message, frame)
        return None

    def _run_next(self) -> None:
        """Run the calls that were put off, one after the other."""
        while not self._is_busy and self._put_off:
            try:
                call = self._put_off.popleft()
            except IndexError:  # a signal came, and with it they were given back
                break
            self._is_busy = True
            try:
                self._answer(*call)
            finally:
                self._is_busy = bool(self._tasks)
        if self.lane.marshaller.is_warm and self._trimmer is None:
            self._trimmer = self._loop.call_later(TRIM_AFTER, self._trim)

    def _trim(self) -> None:
        """Give memory back that was needed to send large values, when nothing goes on."""
        self._trimmer = None
        if not self._is_busy and self.lane.rests(TRIM_AFTER):
            self.lane.marshaller.trim()
        if self.lane.marshaller.is_warm:
            self._trimmer = self._loop.call_later(TRIM_AFTER, self._trim)

    def give_back(self) -> None:
        """Return the calls that have not begun, if that was asked; called by a signal handler."""
        recalled = self._slot.recalled_call
        if recalled == self._recalled_call:
            return
        self._recalled_call = recalled
        for frame in self.lane.take_ahead():
            message = messages.decode_for_worker(frame.header)
            if isinstance(message, _CALLS):
                self._put_off.append((message, frame))
            elif (act := self._take_other(message, frame)) is not None:
                self._loop.call_soon_threadsafe(act)
        ids = []
        with contextlib.suppress(IndexError):  # its own thread takes them as well
            while self._put_off[0][0].id <= recalled:
                ids.append(self._put_off.popleft()[0].id)
        self.lane.send(pack(messages.encode(messages.Requeued(ids))))
        if self._put_off:
            self._loop.call_soon_threadsafe(self._run_next)

    def _prepare_for_next(self) -> None:
        """Do what was to be done before the next call, in the order in which it came."""
        while self._before_next:
            message, frame = self._before_next.popleft()
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
                case messages.Forget(session=session, number=number):
                    self._isolation.forget(session, number)
                case _:
                    self._on_message(message, frame)

    def _define(self, message: messages.Define, frame: Frame) -> None:
        try:
            self._registry.define(message.name, self.lane.marshaller.load(message, frame))
        except BaseException as error:  # noqa: BLE001 - told by the call that follows
            self._registry.spoil(message.name, error)

    def _prepare_function(self, message: messages.Prepare, frame: Frame) -> None:
        try:
            self._functions[message.number] = self.lane.marshaller.load(message, frame)
        except BaseException as error:  # noqa: BLE001 - told by the calls that follow
            self._functions[message.number] = functools.partial(_raise, error)

    # -- calls ---------------------------------------------------------------------------------

    def _answer(self, call: CallMessage, frame: Frame) -> None:
        if self._before_next:
            self._prepare_for_next()
        if self.autoreload is not None:
            self.autoreload.reload_changed()
        before = self._isolation.current
        try:
            self._answer_here(call, frame)
        finally:
            if call.inside:
                self._isolation.enter(before)

    def _answer_here(self, call: CallMessage, frame: Frame) -> None:
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
            self._isolation.enter(call.session)
            ready, is_async = self._prepare(call, frame, call_context)
        except BaseException as error:  # noqa: BLE001 - unpickling runs any code; the caller must hear of it
            _end_child(error)
            advise(error, base.worker)
            self.lane.send(
                replies.with_error(self.lane.marshaller, call.id, error, before_running=True)
            )
            return
        _end_child()
        loop = asyncio._get_running_loop()  # noqa: SLF001 - public in asyncio.events
        if not is_async:
            self._run(call.id, ready, call_context, loop)
        elif loop is None:  # inside another call, whose thread waits
            self._run_apart(self._run_async(call.id, ready, call_context))
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
        """Return what runs a call, and whether it gives an awaitable."""
        if isinstance(call, messages.Apply):
            if call.function:
                prepared = self._functions[call.function]
                return functools.partial(prepared, *self.lane.marshaller.load(call, frame)), False
            function, args, kwargs = self.lane.marshaller.load(call, frame)
            if call.belongs_to_cell:
                self._of_cells.add(call.id)
            return functools.partial(function, *args, **kwargs), inspect.iscoroutinefunction(
                function
            )
        tool = self._registry.get(call.tool)
        args, kwargs = self.lane.marshaller.load(call, frame)
        ready = tool.bind(call_context, args, kwargs)
        if tool.streams:
            ready = self._streaming(call, ready, is_async=tool.is_async)
        return ready, tool.is_async

    def _streaming(
        self, call: messages.Call, ready: Callable[[], Any], *, is_async: bool
    ) -> Callable[[], Any]:
        if not call.room:
            msg = f"tool {call.tool!r} streams, and was called for one value"
            raise AdapterError(msg)
        sender = self._senders[call.id] = StreamSender(call.id, call.room, self.lane, self._slot)
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
        # A tool is a plain function to its author: inside it, asyncio.run() must work.
        asyncio._set_running_loop(None)  # noqa: SLF001
        self._loops.begin()
        try:
            value = self.interrupts.run(call_id, ready)
        except BaseException as error:  # noqa: BLE001 - the edge of a request: it answers
            _end_child(error)
            self._loops.end()
            asyncio._set_running_loop(outer)  # noqa: SLF001
            self._refuse(call_id, error, lingers=self._end(call_id, call_context))
        else:
            _end_child()
            self._loops.end()
            asyncio._set_running_loop(outer)  # noqa: SLF001
            lingers = self._end(call_id, call_context)
            self.lane.send(
                replies.encode_value(self.lane.marshaller, call_id, value, lingers=lingers)
            )
        finally:
            enter_call(before)

    def _run_apart(self, running: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in a loop of its own, which reads the lane as well."""
        self._loops.begin()
        try:
            with asyncio.Runner() as runner, self.lane.also_read_in(runner.get_loop()):
                runner.run(running)
        finally:
            self._loops.end()

    async def _run_async(
        self, call_id: int, ready: Callable[[], Any], call_context: SessionContext
    ) -> None:
        self._begin(call_id, call_context)  # its context is that of this task alone
        session = call_context.session_id
        awaited = functools.partial(_ending_children, ready)
        within = functools.partial(self._isolation.within, session, awaited)
        policy = self._loops.begin_awaited()
        try:
            value = await self.interrupts.run_async(call_id, within)
            self._isolation.enter(session)  # to pickle what has come
        except BaseException as error:  # noqa: BLE001 - the edge of a request: it answers
            self._loops.end_awaited(policy)
            self._end(call_id, call_context)
            self._refuse(call_id, error, lingers=True)
        else:
            self._loops.end_awaited(policy)
            self._end(call_id, call_context)  # tasks that it has started may go on
            self.lane.send(replies.encode_value(self.lane.marshaller, call_id, value, lingers=True))

    def _refuse(self, call_id: int, error: BaseException, *, lingers: bool) -> None:
        """Answer a call that raised."""
        was_interrupted = call_id in {self.interrupts.interrupted, self.host_calls.interrupted}
        answer = replies.with_error(
            self.lane.marshaller, call_id, error, is_own=not was_interrupted, lingers=lingers
        )
        self.lane.send(answer)

    def _begin(self, call_id: int, call_context: SessionContext) -> None:
        begin_call(call_context)
        self.host_calls.begin(call_id)
        self.output.begin(call_id)
        self._isolation.tell()

    def _end(self, call_id: int, call_context: SessionContext) -> bool:
        """End a call; say whether it has left threads."""
        if self._of_cells and call_id in self._of_cells:
            self._of_cells.remove(call_id)
        else:
            self._finish()
        if self.autoreload is not None:
            self.autoreload.note_imported()  # before the answer: then the user may edit them
        lingers = end_call(call_context)
        self.output.end(call_id)
        self.host_calls.end(call_id)
        if self._senders:
            self._senders.pop(call_id, None)
        return lingers


def _raise(error: BaseException, *_: object) -> None:
    raise error


def _end_child(error: BaseException | None = None) -> None:
    """End here what the code of a call has forked: it must not answer."""
    if children.is_child:
        children.end(error)


async def _ending_children(ready: Callable[[], Any]) -> Any:
    """Await a call, but in its parent only."""
    try:
        value = await ready()
    except BaseException as error:
        _end_child(error)
        raise
    _end_child()
    return value
