"""Comms of workers in the notebook's kernel: what the page sends them goes to their worker."""

from __future__ import annotations

import contextvars
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ..locks import Lock
from .display import current_shell, echo, flush, page_request, send_to_page

WIDGET_TARGET = "jupyter.widget"
CONTROL_TARGET = "jupyter.widget.control"
"""Targets of ipywidgets: of each widget, and of the comm that asks for the states of all."""

MAX_ENDED = 1000
"""Comms of ended workers that are still known, to say so when the page uses one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PageMessage:
    """A message of the page to a comm of a worker.

    Attributes
    ----------
    kind, content, metadata, buffers
        Type and parts of the Jupyter message.
    message_id
        Its id, which the page's future for it waits for.
    session
        The session whose code has opened the comm; None if that is unknown, or none.
    context
        The context in which its output is shown.
    on_handled
        To be called once, when the worker has handled it.
    """

    kind: str
    content: dict[str, Any]
    metadata: dict[str, Any]
    buffers: Sequence[Any]
    message_id: str
    session: str | None
    context: contextvars.Context
    on_handled: Callable[[], None]


class CommWorker(Protocol):
    """The worker of comms, as far as the relay needs it."""

    @property
    def name(self) -> str:
        """Its name."""

    def receive(self, message: PageMessage) -> None:
        """Pass a message of the page on, without waiting for the worker."""


class RelayedComm:
    """Stands for a comm of a worker in the comm manager of the notebook's kernel.

    Parameters
    ----------
    comm_id, target_name
        As the worker has named them.
    worker, session
        Where it was opened.
    pass_on
        Passes on a message of the page to this comm.

    Attributes
    ----------
    context
        The context in which it was opened: the notebook finds its cell there.
    """

    def __init__(
        self,
        comm_id: str,
        target_name: str,
        worker: CommWorker,
        session: str | None,
        pass_on: Callable[[RelayedComm, dict[str, Any]], None],
    ) -> None:
        self.comm_id = comm_id
        self.target_name = target_name
        self.worker = worker
        self.session = session
        self.context = contextvars.copy_context()
        self._closed = False  # set by the comm manager
        self._pass_on = pass_on

    def handle_msg(self, message: dict[str, Any]) -> None:
        """Pass on a message; called by the comm manager."""
        self._pass_on(self, message)

    handle_close = handle_msg


class CommRelay:
    """Passes on the page's comm messages to the workers whose code has opened the comms.

    A message counts as handled when the worker has handled it, not when it was passed on: the page
    waits for that before it sends the next value of a slider.

    Parameters
    ----------
    kernel
        The notebook's kernel.

    Attributes
    ----------
    kernel
        The same.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._manager = kernel.comm_manager
        self._lock = Lock()
        self._unhandled: dict[str, bool] = {}  # by message: whether its idle status is held back
        self._ended: OrderedDict[str, str] = OrderedDict()  # the worker's name, by comm
        self._targets: dict[str, tuple[CommWorker, str | None]] = {}
        self._publish_status = kernel._publish_status  # noqa: SLF001 - it is what handlers publish
        kernel._publish_status = self._publish_status_unless_held  # noqa: SLF001
        self._get_comm = self._manager.get_comm
        self._manager.get_comm = self._find
        handlers = kernel.shell_handlers
        handlers["comm_open"] = partial(self._handle_open, handlers["comm_open"])
        handlers["comm_msg"] = partial(self._handle_message, handlers["comm_msg"])

    # -- from the worker -----------------------------------------------------------------------

    def open(self, comm_id: str, target_name: str, worker: CommWorker, session: str | None) -> None:
        """Pass on to a worker what the page sends to a comm from now on."""
        comm = RelayedComm(comm_id, target_name, worker, session, self._pass_on)
        self._manager.register_comm(comm)

    def forget(self, comm_id: str) -> None:
        """Forget a comm that its worker has closed."""
        if isinstance(self._manager.comms.get(comm_id), RelayedComm):
            self._manager.comms.pop(comm_id, None)

    def add_target(self, name: str, worker: CommWorker, session: str | None) -> None:
        """Let the page open comms to a target that a session's code in a worker has registered."""
        self._targets[name] = worker, session

    def end(self, worker: CommWorker, *, is_announced: bool) -> None:
        """Forget the comms of a worker that has ended.

        Parameters
        ----------
        worker
            The worker.
        is_announced
            Whether the page's widgets are closed, and their cells say why. Else what they show
            stays, until somebody uses one.
        """
        comms = self._relayed(lambda comm: comm.worker is worker)
        cells: dict[str, contextvars.Context] = {}
        for comm in comms:
            self._manager.comms.pop(comm.comm_id, None)
            self._ended[comm.comm_id] = worker.name
            if is_announced:
                context = comm.context.copy()
                cells[context.run(page_request)] = context
                context.run(self._close_on_page, comm.comm_id)
        while len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)
        for name in [name for name, (owner, _) in self._targets.items() if owner is worker]:
            del self._targets[name]
        for context in cells.values():
            context.run(
                _say,
                f"The widgets of this cell are gone: worker {worker.name} has ended. "
                "Run the cell again for new ones.",
            )

    def _relayed(self, fits: Callable[[RelayedComm], bool]) -> list[RelayedComm]:
        comms = list(self._manager.comms.values())
        return [comm for comm in comms if isinstance(comm, RelayedComm) and fits(comm)]

    def _close_on_page(self, comm_id: str) -> None:
        send_to_page(self.kernel, "comm_close", {"comm_id": comm_id, "data": {}})

    # -- from the page -------------------------------------------------------------------------

    def _handle_open(self, handle: Callable[..., Any], *request: Any) -> Any:
        """Open a comm here, or in the worker that has registered its target."""
        message = request[-1]
        content = message["content"]
        target, comm_id = content.get("target_name", ""), content["comm_id"]
        if target == CONTROL_TARGET and self._relayed(lambda c: c.target_name == WIDGET_TARGET):
            # One kernel would tell the states of its own widgets alone. Without this comm the page
            # asks each widget that `comm_info_request` tells of, wherever that is.
            self._close_on_page(comm_id)
            return None
        worker, session = self._targets.get(target, (None, None))
        if worker is None or target in self._manager.targets:
            return handle(*request)
        self.open(comm_id, target, worker, session)
        self._pass_on(self._manager.comms[comm_id], message)
        return None

    def _handle_message(self, handle: Callable[..., Any], *request: Any) -> Any:
        """Handle a message; say so if its comm has gone with its worker."""
        comm_id = request[-1]["content"].get("comm_id", "")
        worker = self._ended.get(comm_id)
        if worker is None or comm_id in self._manager.comms:
            return handle(*request)
        self._close_on_page(comm_id)
        _say(
            f"This widget does nothing any more: worker {worker} has ended. "
            "Run its cell again for a new one."
        )
        return None

    def _find(self, comm_id: str) -> Any:
        """Return a comm; of one that has gone with its worker, `_handle_message` tells."""
        if comm_id in self._ended and comm_id not in self._manager.comms:
            return None
        return self._get_comm(comm_id)

    def _pass_on(self, comm: RelayedComm, message: dict[str, Any]) -> None:
        header = message["header"]
        message_id = header["msg_id"]
        with self._lock:
            self._unhandled[message_id] = False
        context = contextvars.copy_context()
        # The context outlives the message, which may be large.
        slim = {**message, "content": {}, "buffers": []}
        context.run(self.kernel._shell_parent.set, slim)  # noqa: SLF001 - where get_parent looks
        comm.worker.receive(
            PageMessage(
                kind=header["msg_type"],
                content=message["content"],
                metadata=message.get("metadata") or {},
                buffers=message.get("buffers") or (),
                message_id=message_id,
                session=comm.session,
                context=context,
                on_handled=partial(self._note_handled, slim),
            )
        )

    # -- the end of a message ------------------------------------------------------------------

    def _publish_status_unless_held(
        self, status: str, channel: str, parent: dict[str, Any] | None = None
    ) -> None:
        """Publish a status, but not that a message was handled which a worker still has."""
        if status == "idle" and self._unhandled:
            message = parent or self.kernel.get_parent(channel)
            message_id = message.get("header", {}).get("msg_id")
            with self._lock:
                if message_id in self._unhandled:
                    self._unhandled[message_id] = True
                    return
        self._publish_status(status, channel, parent)

    def _note_handled(self, message: dict[str, Any]) -> None:
        """Publish that a message was handled, unless the kernel itself is about to do so."""
        with self._lock:
            was_held = self._unhandled.pop(message["header"]["msg_id"], False)
        if was_held:
            self._publish_status("idle", "shell", message)


_relays: list[CommRelay] = []  # of this process's kernel, once a worker has opened a comm
_making = Lock()


def comm_relay() -> CommRelay | None:
    """Return the relay of this process's kernel; None if there is no notebook here."""
    kernel = getattr(current_shell(), "kernel", None)
    if kernel is None or not hasattr(kernel, "comm_manager"):
        return None
    with _making:
        if not _relays or _relays[0].kernel is not kernel:
            _relays[:] = [CommRelay(kernel)]
        return _relays[0]


def _say(text: str) -> None:
    echo("stderr", f"{text}\n")
    flush("stderr")
