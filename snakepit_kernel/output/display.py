"""Display of a call's output in the caller's process: text, progress bars, rich output."""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..ids import COMM_TYPES
from ..loggers import get_logger
from .progress_bars import Bar, LineBar, Settings, bars_cleared, open_bar

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

logger = get_logger(__name__)

_DISPLAY_TYPES = {"display_data", "update_display_data", "execute_result"}


class Display:
    """Shows the output of a call in this process.

    Parameters
    ----------
    context
        The context in which output is shown, for calls that another thread drives: the notebook
        finds the cell of an output there. Default: the current one.
    """

    __slots__ = ("_bars", "_run")

    def __init__(self, context: contextvars.Context | None = None) -> None:
        self._run: Callable[..., Any] = _directly if context is None else context.run
        self._bars: dict[int, Bar] = {}

    def use_context(self, context: contextvars.Context) -> None:
        """Use a context from now on, unless one was given: the caller has moved on."""
        if self._run is _directly:
            self._run = context.run

    def write(self, stream: str, text: str) -> None:
        """Print what was printed to ``"stdout"`` or ``"stderr"``."""
        self._run(self._write, stream, text)

    def publish(
        self,
        kind: str,
        content: dict[str, Any],
        metadata: dict[str, Any],
        buffers: Sequence[Any] = (),
    ) -> None:
        """Show a display message of a worker's IPython.

        Parameters
        ----------
        kind, content, metadata, buffers
            Type and parts of the Jupyter message.
        """
        self._run(self._publish, kind, content, metadata, buffers)

    def value(self, value: object) -> None:
        """Show a value, with its rich representations in a notebook."""
        self._run(self._value, value)

    def move(self, number: int, settings: Settings, *, ended: bool = False) -> None:
        """Update a progress bar; open it the first time.

        Parameters
        ----------
        number
            Number of the bar, unique in the call.
        settings
            See `Settings`.
        ended
            Whether this is its last update.
        """
        self._run(self._move, number, settings, ended)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function where output is shown."""
        return self._run(function, *args)

    def close(self) -> None:
        """Close the bars that are open."""
        if self._bars:
            self._run(self._close)

    def _write(self, stream: str, text: str) -> None:
        # In the middle of a line no bar is drawn: it reappears with its next update.
        with bars_cleared() if text.endswith("\n") else contextlib.nullcontext():
            echo(stream, text)

    def _publish(
        self, kind: str, content: dict[str, Any], metadata: dict[str, Any], buffers: Sequence[Any]
    ) -> None:
        try:
            with bars_cleared():
                publish(kind, content, metadata, buffers)
        except Exception:  # the worker's content is wrong; the wait for the answer goes on
            logger.warning("what a call showed (%s) cannot be shown here", kind, exc_info=True)

    def _value(self, value: object) -> None:
        if isinstance(value, str) or current_shell() is None:
            self._write("stdout", f"{value}\n")
            return
        from IPython.display import display

        with bars_cleared():
            display(value)  # type: ignore[no-untyped-call]

    def _move(self, number: int, settings: Settings, ended: bool) -> None:
        try:
            self._advance(number, settings, ended)
        except Exception:  # a format that only the worker's own class of bars can fill, for example
            logger.debug("a bar cannot be drawn; it is shown as text", exc_info=True)
            self._bars[number] = LineBar()
            self._advance(number, settings, ended)

    def _advance(self, number: int, settings: Settings, ended: bool) -> None:
        bar = self._bars.get(number)
        if bar is None:
            bar = self._bars[number] = open_bar(settings)
        elif not ended:
            bar.show(settings)
        if ended:
            bar.close(settings)
            del self._bars[number]

    def _close(self) -> None:
        while self._bars:
            _, bar = self._bars.popitem()  # the innermost first, as their loops end
            try:
                bar.close()
            except Exception:
                logger.debug("a bar cannot be closed", exc_info=True)


def publish(
    kind: str, content: dict[str, Any], metadata: dict[str, Any], buffers: Sequence[Any] = ()
) -> None:
    """Show a display message of another IPython in this one, see `Display.publish`."""
    shell = current_shell()
    match kind:
        case "stream":
            echo(content["name"], content["text"])
        case "error":
            echo("stderr", "\n".join([*content["traceback"], ""]))
        case "clear_output":
            if shell is not None:
                shell.display_pub.clear_output(  # type: ignore[no-untyped-call]
                    wait=content.get("wait", False)
                )
        case _ if kind in COMM_TYPES:
            _forward_comm(kind, content, metadata, buffers)
        case _ if kind not in _DISPLAY_TYPES:
            pass  # it shows nothing
        case _ if shell is None:
            if kind != "update_display_data" and "text/plain" in content["data"]:
                echo("stdout", f"{content['data']['text/plain']}\n")
        case _:
            shell.display_pub.publish(
                data=content["data"],
                metadata=content.get("metadata", {}),
                transient=content.get("transient", {}),
                update=kind == "update_display_data",
            )


def _forward_comm(
    kind: str, content: dict[str, Any], metadata: dict[str, Any], buffers: Sequence[Any]
) -> None:
    """Forward a comm message of a worker's widget to the page; `CommRelay` is the other way."""
    kernel = getattr(current_shell(), "kernel", None)
    if kernel is not None:
        send_to_page(kernel, kind, content, metadata, buffers)


def send_error(content: dict[str, Any]) -> None:
    """Show an error of another IPython as an error of this one."""
    kernel = getattr(current_shell(), "kernel", None)
    if kernel is None:
        publish("error", content, {})
    else:
        send_to_page(kernel, "error", content)


def send_to_page(
    kernel: Any,
    kind: str,
    content: dict[str, Any],
    metadata: dict[str, Any] | None = None,
    buffers: Sequence[Any] = (),
) -> None:
    """Send a message as output of what runs here."""
    kernel.session.send(
        kernel.iopub_socket,
        kind,
        content,
        metadata=metadata,
        buffers=list(buffers),
        parent=kernel.get_parent(),
        ident=kernel._topic(kind),  # noqa: SLF001 - as for its own messages
    )


def page_request() -> str:
    """Return the id of the page's request that runs here, or whose output this is; else empty."""
    kernel = getattr(current_shell(), "kernel", None)
    header = {} if kernel is None else kernel.get_parent().get("header", {})
    return str(header.get("msg_id", ""))


def current_shell() -> InteractiveShell | None:
    """Return IPython's shell, if there is one."""
    module = sys.modules.get("IPython.core.interactiveshell")
    if module is None or not module.InteractiveShell.initialized():
        return None
    shell: InteractiveShell = module.InteractiveShell.instance()
    return shell


def echo(stream: str, text: str) -> None:
    """Print text of a call to a standard stream."""
    target = sys.stdout if stream == "stdout" else sys.stderr
    if target is not None:
        target.write(text)


def flush(stream: str) -> None:
    """Send what was printed to a standard stream: what is shown next must not come before it."""
    target = sys.stdout if stream == "stdout" else sys.stderr
    if target is not None:
        target.flush()


def _directly(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)
