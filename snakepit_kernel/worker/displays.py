"""Routing of IPython display messages in a worker: to the caller of a call, or to a past cell."""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ..ids import COMM_TYPES, SESSION_KEY
from ..protocol import messages
from ..tools.context import call_of_here
from .comms import CommSessions
from .figures import figures_of_calls, finish_figures
from .output import LateSender

if TYPE_CHECKING:
    from ..kernel.kernel import SnakepitKernel

_RICH = {
    "display_data",
    "update_display_data",
    "execute_result",
    "clear_output",
    "error",
    *COMM_TYPES,
}


class DisplayRouter:
    """Routes the messages that IPython publishes in this process.

    Parameters
    ----------
    late
        Sends output whose cell has ended.
    comms
        Notes the comms that are opened.
    """

    def __init__(self, late: LateSender, comms: CommSessions) -> None:
        self._late = late
        self._comms = comms
        self._kernel: SnakepitKernel | None = None
        self._hooks: list[Callable[[], None]] = []
        self._requests: set[str] = set()  # the cells that run

    def attach(self, kernel: SnakepitKernel) -> None:
        """Divert the messages of a kernel that has been built."""
        assert kernel.shell is not None
        self._kernel = kernel
        self._hooks = kernel.shell.events.callbacks["post_execute"]
        kernel.divert_output(self._route)
        self._comms.report_targets(kernel, self._late)

    def _route(
        self,
        kind: str,
        parent: dict[str, Any],
        content: dict[str, Any],
        metadata: dict[str, Any],
        buffers: Sequence[Any],
    ) -> bool:
        """Route a message that is about to be published; return True to suppress it here."""
        if kind in COMM_TYPES:
            metadata = {**metadata, SESSION_KEY: self._comms.note_sent(kind, content)}
        call = call_of_here() if kind in _RICH else None
        output = None if call is None else call._output  # noqa: SLF001 - one idea in two modules
        if call is not None and output is not None:
            body = self._body(content, metadata)
            output.show(call._call_id, kind, body, _views(buffers))  # noqa: SLF001
            return True
        request = parent.get("msg_id", "")
        if kind == "status":
            is_idle = content["execution_state"] == "idle"
            (self._requests.discard if is_idle else self._requests.add)(request)
        elif (kind in _RICH or kind == "stream") and request and request not in self._requests:
            self._send_late(kind, request, content, metadata, buffers)
        return False

    def _send_late(
        self,
        kind: str,
        request: str,
        content: dict[str, Any],
        metadata: dict[str, Any],
        buffers: Sequence[Any],
    ) -> None:
        message = messages.Late(kind, cell=request)
        if kind == "stream":
            self._late.print(message, content["name"], content["text"])
        else:
            self._late.show(message, self._body(content, metadata), _views(buffers))

    def _body(self, content: dict[str, Any], metadata: dict[str, Any]) -> bytes:
        assert self._kernel is not None
        assert self._kernel.session is not None
        pack = self._kernel.session.pack  # as the kernel encodes its own messages
        return messages.as_shown(pack(content), pack(metadata))

    def current_cell(self) -> Callable[[], AbstractContextManager[None]]:
        """Return a context manager factory under which a new thread shows in the current cell."""
        kernel = self._kernel
        if kernel is None or kernel.shell is None:
            return contextlib.nullcontext
        shell = kernel.shell
        return functools.partial(_showing_in, shell, shell.get_parent())

    # -- the end of a call ---------------------------------------------------------------------

    def finish(self) -> None:
        """Run IPython's hooks for the end of a cell, which show open figures, for example."""
        if len(self._hooks) > 1:  # IPython has one of its own
            assert self._kernel is not None
            _run_hooks(self._kernel.shell, self._hooks)
        if figures_of_calls:
            self.finish_in_thread()

    def finish_in_thread(self) -> None:
        """Show open figures only: other calls run at the same time, and share IPython's hooks."""
        try:
            finish_figures()
        except Exception:  # noqa: BLE001 - as above
            traceback.print_exc()


def _run_hooks(shell: Any, hooks: Sequence[Callable[[], None]]) -> None:
    own = shell.display_pub._on_post_execute  # noqa: SLF001 - it records the end of a cell
    for hook in [hook for hook in hooks if hook != own]:
        try:
            hook()
        except Exception:  # noqa: BLE001 - as IPython does: the error is shown, nothing more
            shell.showtraceback()


@contextlib.contextmanager
def _showing_in(shell: Any, parent: dict[str, Any]) -> Iterator[None]:
    """Show the output of this thread in the cell of a request."""
    tokens = shell.set_thread_parent(parent)
    try:
        yield
    finally:
        shell.reset_thread_parent(tokens)


def _views(buffers: Sequence[Any]) -> list[memoryview]:
    return [memoryview(buffer).cast("B") for buffer in buffers]
