"""A worker as a Jupyter kernel: its manager, its client, and the run of a cell."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import zmq
import zmq.asyncio
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from jupyter_client.manager import AsyncKernelManager

from ...errors import CellError
from ...ids import SESSION_KEY
from ...lane.owner_end import MAX_LINGERING, OwnerLane
from ...protocol.frames import Frame
from ...protocol.messages import Late, shown
from ...telemetry.correlation import METADATA_KEY
from ..results import CellResult

if TYPE_CHECKING:
    from ..resources.kernelspec import WorkerKernel

OnMessage = Callable[[dict[str, Any]], None]

WELCOME_PATIENCE = 5.0
"""Seconds to wait until the subscription to a worker's output is in force."""

OUTPUT_PATIENCE = 0.2
"""Seconds after the answer to a request in which the output that belongs to it comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell to be run.

    Attributes
    ----------
    code
        Its text.
    on_message
        Gets each of its iopub messages as it arrives; what comes when the cell has ended, in the
        pool's own thread and the caller's context.
    with_value
        Whether the value of its last expression is wanted.
    push
        Variables to set in the worker before it.
    pull
        Names of variables to fetch from the worker after it, if it did not raise.
    """

    code: str
    on_message: OnMessage | None = None
    encode_value: bool = True
    push: Mapping[str, Any] = field(default_factory=dict)
    pull: Sequence[str] = ()


class CellClient:
    """A worker's Jupyter channels, used by whoever holds the worker.

    Parameters
    ----------
    worker
        Name of the worker.
    connection
        What its connection file holds.
    context
        ZeroMQ context, the synchronous one.

    Attributes
    ----------
    worker
        Name of the worker, which one that was kept ready gets anew.
    """

    def __init__(
        self, worker: str, connection: KernelConnectionInfo, context: zmq.Context[Any]
    ) -> None:
        self.worker = worker
        self._client = BlockingKernelClient(context=context)
        self._client.load_connection_info(connection)
        self._client.start_channels(stdin=False, hb=False, control=False)
        self._shell = self._client.shell_channel
        self._iopub = self._client.iopub_channel
        self._poller = zmq.Poller()
        self._late_handlers: dict[str, tuple[contextvars.Context, OnMessage]] = {}
        for channel in (self._shell, self._iopub):
            self._poller.register(channel.socket, zmq.POLLIN)

    def await_welcome(self, deadline: float | None, is_alive: Callable[[], bool]) -> bool:
        """Wait for the kernel's word that it has our subscription; say whether that came.

        Output before it is lost.

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
        """Wait until a kernel that says nothing by itself answers, and its output is heard.

        Raises
        ------
        ConnectionError
            It is gone.
        """
        until: float | None = None
        while not self._answers_with_output(is_alive):
            if until is None:
                until = time.monotonic() + WELCOME_PATIENCE
            elif time.monotonic() > until:  # it tells nobody what it does
                return

    def _answers_with_output(self, is_alive: Callable[[], bool]) -> bool:
        """Ask the kernel what it is; say whether there came output with the answer."""
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
        self._iopub.stop()
        self._shell.stop()

    def begin(self, cell: Cell, session: str | None, correlation: str) -> CellRun:
        """Send a cell of a session to the worker, with its correlation id."""
        content = {
            "code": cell.code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        # Not client.execute(): it has no place for metadata.
        metadata = {SESSION_KEY: session, METADATA_KEY: correlation}
        request = self._client.session.msg("execute_request", content, metadata=metadata)
        self._shell.send(request)
        result = CellResult(worker=self.worker)
        request_id: str = request["header"]["msg_id"]
        if cell.on_message is not None:
            self._late_handlers[request_id] = contextvars.copy_context(), cell.on_message
            if len(self._late_handlers) > MAX_LINGERING:
                del self._late_handlers[next(iter(self._late_handlers))]
        return CellRun(request_id, result, cell.on_message)

    def show_late(self, message: Late, frame: Frame) -> None:
        """Show what a cell shows that has ended, in any thread, if it is known where that stood."""
        if message.cell not in self._late_handlers:
            return
        context, on_message = self._late_handlers[message.cell]
        content, metadata = shown(frame.body)
        displayed = {
            "msg_type": message.kind,
            "header": {"msg_type": message.kind},
            "parent_header": {"msg_id": message.cell},
            "content": content,
            "metadata": metadata,
            "buffers": frame.buffers,
        }
        context.copy().run(on_message, displayed)

    def follow(
        self, run: CellRun, deadline: float | None, is_alive: Callable[[], bool], lane: OwnerLane
    ) -> None:
        """Collect what a cell gives until it has ended. Can be called again after an exception.

        Parameters
        ----------
        run
            The cell.
        deadline
            `time.monotonic` at which to give up; the cell goes on.
        is_alive
            Says whether the worker still lives; asked whenever nothing arrives.
        lane
            Where the cell calls host tools.

        Raises
        ------
        TimeoutError
            The deadline passed.
        ConnectionError
            The worker is gone.
        """
        descriptor = lane.fileno()
        self._poller.register(descriptor, zmq.POLLIN)
        try:
            while not run.has_ended:
                for channel in self._ready(deadline, is_alive, lane):
                    message = channel.get_msg(timeout=0)
                    if message["parent_header"].get("msg_id") == run.request_id:
                        run.take(message)
        finally:
            self._poller.unregister(descriptor)

    def _ready(
        self, deadline: float | None, is_alive: Callable[[], bool], lane: OwnerLane | None = None
    ) -> list[Any]:
        """Wait until a channel has a message; return those that have."""
        while True:
            step = 0.1 if deadline is None else min(0.1, deadline - time.monotonic())
            if step <= 0:
                raise TimeoutError
            # The step is not for output, which wakes us; it is for the death of the worker, of
            # which a ZeroMQ socket says nothing.
            events = dict(self._poller.poll(max(1, int(step * 1000))))
            if lane is not None and lane.fileno() in events:
                lane.receive_ready()
                return [c for c in (self._iopub, self._shell) if c.socket in events]
            if events:
                return [c for c in (self._iopub, self._shell) if c.socket in events]
            if not is_alive():
                raise ConnectionError


class CellRun:
    """A cell on its way: makes notebook outputs of messages until the last one is here.

    Parameters
    ----------
    request_id
        Id of the execute request.
    result
        Gets the outputs.
    on_message
        Gets each iopub message as it arrives.

    Attributes
    ----------
    asks_exit
        The cell has told its kernel to exit.
    """

    def __init__(self, request_id: str, result: CellResult, on_message: OnMessage | None) -> None:
        self.request_id = request_id
        self.result = result
        self._on_message = on_message
        self._replied = False
        self._idle = False
        self.asks_exit = False
        self._displays: dict[str, list[dict[str, Any]]] = {}
        self._clear_next = False

    @property
    def has_ended(self) -> bool:
        """Whether the reply and the last output are here."""
        return self._replied and self._idle

    @property
    def is_idle(self) -> bool:
        """Whether the kernel has done with it; some give no reply to what was interrupted."""
        return self._idle

    def take(self, message: dict[str, Any]) -> None:
        """Take in a message of this cell."""
        content = message["content"]
        if message["msg_type"] == "execute_reply":
            self._replied = True
            self.asks_exit = any(map(_is_exit, content.get("payload") or ()))
            _take_reply(content, self.result)
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
    """Gives all workers of a pool the one kernelspec that the pool has found.

    Parameters
    ----------
    kernel
        What was found.
    """

    def __init__(self, kernel: WorkerKernel) -> None:
        super().__init__()
        self._kernel = kernel

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """Return the kernelspec."""
        if self._kernel.spec is None:
            raise NoSuchKernel(kernel_name)
        return self._kernel.spec


# jupyter_client tells each error of a start with its traceback; here it is raised, and logged once.
_log_of_managers = logging.getLogger(__name__)
_log_of_managers.addFilter(lambda record: record.exc_info is None)


class WorkerManager(AsyncKernelManager):
    """Starts a kernel without the sleep that jupyter_client adds when it has been launched."""

    def __init__(self, **traits: Any) -> None:
        super().__init__(log=_log_of_managers, **traits)
        self._is_launched = asyncio.Event()
        self._start: asyncio.Future[None] | None = None

    async def _async_post_start_kernel(self, **arguments: Any) -> None:
        await super()._async_post_start_kernel(**arguments)
        self._is_launched.set()

    async def launch(self, **arguments: Any) -> None:
        """Start the kernel; return when it runs. The parameters are those of `start_kernel`."""
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
        """Wait until nothing of a start is left to do."""
        if self._start is not None:
            await asyncio.wait({self._start})
