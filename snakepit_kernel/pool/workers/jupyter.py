"""Jupyter kernel manager and client of a worker, and the execution of cells."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import zmq
import zmq.asyncio
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from jupyter_client.manager import AsyncKernelManager

from ...errors import CellError
from ...ids import COMM_TYPES, SESSION_KEY
from ...lane.owner_end import MAX_LINGERING, OwnerLane
from ...loggers import get_logger
from ...protocol.frames import Frame
from ...protocol.messages import Late, shown
from ...telemetry.correlation import METADATA_KEY
from ..results import CellResult, plain_traceback

if TYPE_CHECKING:
    from ..resources.kernelspec import WorkerKernel

_END_OF_INPUT = "\x04"
"""A line that ipykernel takes for the end of the input."""

OnMessage = Callable[[dict[str, Any]], None]

OnInput = Callable[[str, bool], str]
"""Asks for a line: gets the prompt, and whether what is typed must not be seen."""

OnComm = Callable[[str, dict[str, Any], str | None], None]
"""Gets the type, content and session of each comm message of a worker."""

_NUMBER = "snakepit_request"
"""Key of a request's number in its header, which comes back with all that belongs to the request.

The id of the request may be that of the page's request, and so the same for several ones.
"""

WELCOME_PATIENCE = 5.0
"""Seconds to wait for the confirmation that the subscription to iopub is in force."""

OUTPUT_PATIENCE = 0.2
"""Seconds after the reply to a request within which its output must arrive."""

WATCH_INTERVAL = 0.1
"""Seconds between two looks whether a cell that has asked something still waits for the answer."""

PRINT_PATIENCE = 0.02
"""Seconds that text printed before a question may take to arrive after that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell to run, and the variables to exchange with it.

    Attributes
    ----------
    code
        Its source.
    on_message
        Called with each of its iopub messages as it arrives; for messages after the end of the
        cell, in the pool's own thread and the caller's context.
    encode_value
        Whether the value of its last expression is fetched.
    max_value_bytes
        Size up to which it is, and only if it was shown; None for any.
    push
        Variables to set in the worker before it.
    pull
        Names of variables to fetch from the worker after it, if it did not raise.
    on_input
        Answers its ``input()`` and ``getpass()``, in the thread that runs the cell; None where
        nobody can.
    page_request
        Id of the page's request that shows it: widgets tell the page which output is theirs.
    """

    code: str
    on_message: OnMessage | None = None
    on_input: OnInput | None = None
    page_request: str = ""
    encode_value: bool = True
    max_value_bytes: int | None = None
    push: Mapping[str, Any] = field(default_factory=dict)
    pull: Sequence[str] = ()

    @property
    def title(self) -> str:
        """Its first line that is not empty."""
        return next((line.strip() for line in self.code.splitlines() if line.strip()), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellRequest:
    """A request to a worker's kernel other than a cell.

    Attributes
    ----------
    kind, content, metadata, buffers
        Type and parts of the Jupyter message.
    message_id
        Its id; empty for a new one.
    is_answered
        Whether the kernel replies; it does not to messages of comms.
    on_message
        As for a `Cell`.
    """

    kind: str
    content: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    buffers: Sequence[Any] = ()
    message_id: str = ""
    is_answered: bool = True
    on_message: OnMessage | None = None


class _LateHandler(NamedTuple):
    """What shows the output of a request that has ended."""

    context: contextvars.Context
    on_message: OnMessage


class CellClient:
    """Client of a worker's Jupyter channels, used by the holder of its lane.

    Parameters
    ----------
    worker
        Name of the worker.
    connection
        Content of its connection file.
    context
        Synchronous ZeroMQ context.
    on_comm
        Called with the comm messages that are shown, where they are.

    Attributes
    ----------
    worker
        Name of the worker; a standby worker is renamed when it gets a slot.
    """

    def __init__(
        self,
        worker: str,
        connection: KernelConnectionInfo,
        context: zmq.Context[Any],
        on_comm: OnComm,
    ) -> None:
        self.worker = worker
        self._on_comm = on_comm
        self._numbers = itertools.count(1)
        self._client = BlockingKernelClient(context=context)
        self._client.load_connection_info(connection)
        self._client.start_channels(stdin=True, hb=False, control=False)
        self._shell = self._client.shell_channel
        self._iopub = self._client.iopub_channel
        self._poller = zmq.Poller()
        self._late_handlers: dict[str, _LateHandler] = {}
        # Questions would be lost if that channel were opened only with the first cell that asks.
        self._channels: tuple[Any, ...] = (self._iopub, self._shell, self._client.stdin_channel)
        for channel in self._channels:
            self._poller.register(channel.socket, zmq.POLLIN)

    def await_welcome(self, deadline: float | None, is_alive: Callable[[], bool]) -> bool:
        """Wait for ``iopub_welcome``; return whether it came.

        Output before the subscription is lost.

        Parameters and errors are those of `follow`.
        """
        patience = time.monotonic() + WELCOME_PATIENCE
        until = patience if deadline is None else min(patience, deadline)
        try:
            while True:
                for channel in self._ready(until, is_alive):
                    if channel.get_msg(timeout=0)["msg_type"] == "iopub_welcome":
                        return True
        except TimeoutError:
            if until == deadline:
                raise
        return False

    def await_kernel(self, is_alive: Callable[[], bool]) -> None:
        """Wait until a kernel without ``iopub_welcome`` replies and its output arrives.

        Raises
        ------
        ConnectionError
            The kernel has ended.
        """
        until: float | None = None
        while not self._answers_with_output(is_alive):
            if until is None:
                until = time.monotonic() + WELCOME_PATIENCE
            elif time.monotonic() > until:  # it sends no output for such requests at all
                return

    def _answers_with_output(self, is_alive: Callable[[], bool]) -> bool:
        """Send ``kernel_info_request``; return whether output arrived with the reply."""
        request = self._client.session.msg("kernel_info_request", {})
        self._shell.send(request)
        until: float | None = None
        missing = {self._shell, self._iopub}
        while missing:
            try:
                ready = self._ready(until, is_alive)
            except TimeoutError:
                return False
            for channel in ready:
                message = channel.get_msg(timeout=0)
                if message["parent_header"].get("msg_id") == request["header"]["msg_id"]:
                    missing.discard(channel)
            if until is None and self._shell not in missing:
                until = time.monotonic() + OUTPUT_PATIENCE
        return True

    def close(self) -> None:
        """Close the channels."""
        # Not stop_channels(): it would open the other channels to close them.
        self._late_handlers.clear()
        for channel in self._channels:
            channel.stop()

    def begin(self, cell: Cell, session: str | None, correlation: str) -> CellRun:
        """Send a session's cell to the worker, with its correlation id; return its run."""
        content = {
            "code": cell.code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": cell.on_input is not None,
            "stop_on_error": False,
        }
        request = ShellRequest(
            kind="execute_request",
            content=content,
            message_id=cell.page_request,
            on_message=cell.on_message,
        )
        run = self.send(request, session, correlation)
        run.on_input = cell.on_input
        return run

    def send(self, request: ShellRequest, session: str | None, correlation: str) -> CellRun:
        """Send a request of a session to the worker, with its correlation id; return its run."""
        header = self._client.session.msg_header(request.kind)
        header["msg_id"] = request.message_id or header["msg_id"]
        header[_NUMBER] = number = next(self._numbers)
        metadata = {**request.metadata, SESSION_KEY: session, METADATA_KEY: correlation}
        message = self._client.session.msg(
            request.kind, request.content, header=header, metadata=metadata
        )
        self._client.session.send(self._shell.socket, message, buffers=list(request.buffers))
        result = CellResult(worker=self.worker)
        on_message = None
        if request.on_message is not None:
            on_message = self._noting_comms(request.on_message, session)
            handler = _LateHandler(contextvars.copy_context(), on_message)
            self._late_handlers[header["msg_id"]] = handler
            if len(self._late_handlers) > MAX_LINGERING:
                del self._late_handlers[next(iter(self._late_handlers))]
        run = CellRun(header["msg_id"], result, on_message, number)
        run.is_replied = not request.is_answered
        return run

    def _noting_comms(self, on_message: OnMessage, session: str | None) -> OnMessage:
        """Return a callback that also notes the comms, of which the notebook has to know."""

        def note_and_show(message: dict[str, Any]) -> None:
            if message["msg_type"] in COMM_TYPES:
                self._on_comm(message["msg_type"], message["content"], session)
            on_message(message)

        return note_and_show

    def show_late(self, message: Late, frame: Frame) -> None:
        """Pass output that arrived after a cell's end to that cell's callback, in any thread."""
        if message.cell not in self._late_handlers:
            return
        handler = self._late_handlers[message.cell]
        content, metadata = shown(frame.body)
        displayed = {
            "msg_type": message.kind,
            "header": {"msg_type": message.kind},
            "parent_header": {"msg_id": message.cell},
            "content": content,
            "metadata": metadata,
            "buffers": frame.buffers,
        }
        handler.context.copy().run(handler.on_message, displayed)

    def follow(
        self, run: CellRun, deadline: float | None, is_alive: Callable[[], bool], lane: OwnerLane
    ) -> None:
        """Collect the outputs of a cell until it has ended; can be repeated after an exception.

        Parameters
        ----------
        run
            The run of the cell.
        deadline
            `time.monotonic` at which to stop waiting; the cell goes on.
        is_alive
            Returns whether the worker still lives; called whenever nothing arrives.
        lane
            Carries the cell's calls of host tools.

        Raises
        ------
        TimeoutError
            The deadline passed.
        ConnectionError
            The worker has ended.
        """
        descriptor = lane.fileno()
        self._poller.register(descriptor, zmq.POLLIN)
        try:
            while not run.has_ended:
                for channel in self._ready(deadline, is_alive, lane):
                    message = channel.get_msg(timeout=0)
                    if not run.owns(message):
                        continue
                    if message["msg_type"] == "input_request":
                        self._answer_input(run, message["content"], deadline, is_alive)
                    else:
                        run.take(message)
        finally:
            self._poller.unregister(descriptor)

    def _answer_input(
        self,
        run: CellRun,
        question: Mapping[str, Any],
        deadline: float | None,
        is_alive: Callable[[], bool],
    ) -> None:
        """Ask for a line that a cell wants, below what it has printed; send it."""
        while self._iopub.socket.poll(int(PRINT_PATIENCE * 1000)):
            message = self._iopub.get_msg(timeout=0)
            if run.owns(message):
                run.take(message)
        line = _END_OF_INPUT
        if run.on_input is not None:  # else the cell is being stopped
            with contextlib.suppress(EOFError), _ending_wait(deadline, is_alive):
                line = run.on_input(question["prompt"], question["password"])
        self._client.input(line)

    def _ready(
        self, deadline: float | None, is_alive: Callable[[], bool], lane: OwnerLane | None = None
    ) -> list[Any]:
        """Wait until a channel has a message; return the channels that do."""
        while True:
            step = 0.1 if deadline is None else min(0.1, deadline - time.monotonic())
            if step <= 0:
                raise TimeoutError
            # Output wakes us by itself; the step is for the death of the worker, which a ZeroMQ
            # socket does not report.
            events = dict(self._poller.poll(max(1, int(step * 1000))))
            if lane is not None and lane.fileno() in events:
                lane.receive_ready()
                return [channel for channel in self._channels if channel.socket in events]
            if events:
                return [channel for channel in self._channels if channel.socket in events]
            if not is_alive():
                raise ConnectionError


@contextlib.contextmanager
def _ending_wait(deadline: float | None, is_alive: Callable[[], bool]) -> Iterator[None]:
    """End the wait for an answer in this block when there is nobody to give it to any more.

    It blocks in code of the notebook's front end, which only a signal ends.

    Raises
    ------
    TimeoutError, ConnectionError
        As for `CellClient.follow`.
    """
    answered = threading.Event()
    reasons: list[Exception] = []

    def watch() -> None:
        while not answered.wait(WATCH_INTERVAL):
            if not is_alive():
                reasons.append(ConnectionError())
            elif deadline is not None and time.monotonic() > deadline:
                reasons.append(TimeoutError())
            if reasons:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watcher = threading.Thread(target=watch, name="snakepit-question", daemon=True)
    watcher.start()
    try:
        try:
            yield
        finally:
            answered.set()
            watcher.join()  # its signal comes here, if it comes
    except KeyboardInterrupt:
        if not reasons:
            raise
    if reasons:
        raise reasons[0]


class CellRun:
    """The run of a cell or another request: takes its messages until it has ended.

    Parameters
    ----------
    request_id
        Id of the request.
    result
        Receives the outputs.
    on_message
        Called with each iopub message as it arrives.
    number
        Number of the request.

    Attributes
    ----------
    asks_exit
        Whether the cell has asked its kernel to exit.
    has_shown_value
        Whether the value of its last expression was shown.
    is_replied
        Whether the reply has arrived, or none comes.
    reply
        Content of the reply to a request that is no cell.
    on_input
        Answers questions of the cell; None once it is being stopped.
    """

    def __init__(
        self, request_id: str, result: CellResult, on_message: OnMessage | None, number: int
    ) -> None:
        self.request_id = request_id
        self.result = result
        self.on_input: OnInput | None = None
        self.reply: dict[str, Any] | None = None
        self._on_message = on_message
        self._number = number
        self.is_replied = False
        self._idle = False
        self.asks_exit = False
        self.has_shown_value = False
        self._displays: dict[str, list[dict[str, Any]]] = {}
        self._clear_next = False

    @property
    def has_ended(self) -> bool:
        """Whether the reply and the last output have arrived."""
        return self.is_replied and self._idle

    def owns(self, message: dict[str, Any]) -> bool:
        """Whether a message belongs to this run."""
        parent = message["parent_header"]
        if parent.get("msg_id") != self.request_id:
            return False
        return bool(parent.get(_NUMBER, self._number) == self._number)

    @property
    def is_idle(self) -> bool:
        """Whether the kernel is idle again; some send no reply to an interrupted cell."""
        return self._idle

    def take(self, message: dict[str, Any]) -> None:
        """Process a message of this cell."""
        content = message["content"]
        if message["msg_type"] == "execute_reply":
            self.is_replied = True
            self.asks_exit = any(map(_is_exit, content.get("payload") or ()))
            _take_reply(content, self.result)
            return
        if message["msg_type"].endswith("_reply"):
            self.is_replied, self.reply = True, content
            return
        if self._on_message is not None:
            self._on_message(message)
        self._take_output(message["msg_type"], content)

    def _take_output(self, kind: str, content: dict[str, Any]) -> None:
        match kind:
            case "status":
                self._idle = content["execution_state"] == "idle"
            case "stream":
                self._add_stream(content)
            case "display_data":
                self._add(_rich("display_data", content), content)
            case "execute_result":
                self.has_shown_value = True
                output = _rich("execute_result", content)
                output["execution_count"] = content.get("execution_count")
                self._add(output, content)
            case "update_display_data":
                self._update(content)
            case "error":
                self._add({"output_type": "error", **content}, {})
            case "clear_output":
                self._clear_next = content.get("wait", False)
                if not self._clear_next:
                    self.result.outputs.clear()

    def _add(self, output: dict[str, Any], content: dict[str, Any]) -> None:
        if self._clear_next:
            self.result.outputs.clear()
            self._clear_next = False
        self.result.outputs.append(output)
        display_id = content.get("transient", {}).get("display_id")
        if display_id:
            self._displays.setdefault(display_id, []).append(output)

    def _add_stream(self, content: dict[str, Any]) -> None:
        outputs = self.result.outputs
        last = outputs[-1] if outputs and not self._clear_next else {}
        if last.get("output_type") == "stream" and last["name"] == content["name"]:
            last["text"] += content["text"]
        else:
            self._add({"output_type": "stream", **content}, {})

    def _update(self, content: dict[str, Any]) -> None:
        for output in self._displays.get(content["transient"]["display_id"], ()):
            output["data"] = content["data"]
            output["metadata"] = content.get("metadata", {})


def where_interrupted(error: CellError | None) -> str:
    """Return where a cell was when it was interrupted, as frames; empty when it was not."""
    if error is None or error.type_name != KeyboardInterrupt.__name__:
        return ""
    text = plain_traceback(error).rstrip(": \n")
    frames = text.partition("Traceback (most recent call last)")[2]
    return frames.removesuffix(error.type_name).strip("\n")


def _is_exit(payload: Mapping[str, Any]) -> bool:
    return payload.get("source") == "ask_exit" and not payload.get("keepkernel")


def _rich(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"output_type": kind, "data": content["data"], "metadata": content.get("metadata", {})}


def _take_reply(content: dict[str, Any], result: CellResult) -> None:
    result.execution_count = content.get("execution_count")
    payloads = content.get("payload") or ()
    result.pages = [payload["data"] for payload in payloads if payload.get("source") == "page"]
    if content["status"] == "error":
        name, text = content.get("ename", "Error"), content.get("evalue", "")
        result.error = CellError(name, text, content.get("traceback", ()))
    elif content["status"] != "ok":
        result.error = CellError("Aborted", "the worker did not run the cell")


class KernelSpecs(KernelSpecManager):
    """Kernelspec manager of a pool: returns the one kernelspec that the pool resolved.

    Parameters
    ----------
    kernel
        The resolved kernel.
    """

    def __init__(self, kernel: WorkerKernel) -> None:
        super().__init__()
        self._kernel = kernel

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """Return the kernelspec."""
        if self._kernel.spec is None:
            raise NoSuchKernel(kernel_name)
        return self._kernel.spec


# jupyter_client logs each start error with its traceback; here it is raised, and logged once.
_log_of_managers = get_logger(__name__)
_log_of_managers.addFilter(lambda record: record.exc_info is None)


class WorkerManager(AsyncKernelManager):
    """Kernel manager that starts without the sleep that jupyter_client adds after a launch."""

    def __init__(self, **traits: Any) -> None:
        super().__init__(log=_log_of_managers, **traits)
        self._is_launched = asyncio.Event()
        self._start: asyncio.Future[None] | None = None

    async def _async_post_start_kernel(self, **arguments: Any) -> None:
        await super()._async_post_start_kernel(**arguments)
        self._is_launched.set()

    async def launch(self, **arguments: Any) -> None:
        """Launch the kernel process. The parameters are those of `start_kernel`."""
        self._start = asyncio.ensure_future(self.start_kernel(**arguments))
        launched = asyncio.ensure_future(self._is_launched.wait())
        try:
            await asyncio.wait({self._start, launched}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._start.cancel()
            await self.settled()
            raise
        finally:
            launched.cancel()
        if self._start.done():
            self._start.result()

    async def settled(self) -> None:
        """Wait until a start in progress is over."""
        if self._start is not None:
            await asyncio.wait({self._start})
