"""Where a call shows what it has to show: text, progress bars, values, and what IPython has."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .progress_bars import Bar, LineBar, Settings, bars_aside, open_bar

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

logger = logging.getLogger(__name__)

_DISPLAY_TYPES = {"display_data", "update_display_data", "execute_result"}
_COMM_TYPES = {"comm_open", "comm_msg", "comm_close"}


class Display:
    """Shows, in this process, what a call in a worker shows.

    Parameters
    ----------
    context
        Whose output it is, for calls that are driven elsewhere: the notebook finds the cell of an
        output there. Default: that of whoever calls.
    """

    __slots__ = ("_bars", "_run")

    def __init__(self, context: contextvars.Context | None = None) -> None:
        self._run: Callable[..., Any] = _directly if context is None else context.run
        self._bars: dict[int, Bar] = {}

    def stay(self, context: contextvars.Context) -> None:
        """Show in a context from now on, unless one was given: the caller goes on elsewhere."""
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
        """Show what IPython has shown elsewhere.

        Parameters
        ----------
        kind, content, metadata, buffers
            Of the message that Jupyter has for it.
        """
        self._run(self._publish, kind, content, metadata, buffers)

    def value(self, value: object) -> None:
        """Show a value, as rich as this place can."""
        self._run(self._value, value)

    def move(self, number: int, settings: Settings, *, ended: bool = False) -> None:
        """Show how far a bar is; the first time it is opened.

        Parameters
        ----------
        number
            The bar's own, among those of the call.
        settings
            See `Settings`.
        ended
            It moves no more.
        """
        self._run(self._move, number, settings, ended)

    def close(self) -> None:
        """End the bars that have not ended."""
        if self._bars:
            self._run(self._close)

    def _write(self, stream: str, text: str) -> None:
        # In the middle of a line a bar has no place: it is drawn when it moves again.
        with bars_aside() if text.endswith("\n") else contextlib.nullcontext():
            echo(stream, text)

    def _publish(
        self, kind: str, content: dict[str, Any], metadata: dict[str, Any], buffers: Sequence[Any]
    ) -> None:
        try:
            with bars_aside():
                publish(kind, content, metadata, buffers)
        except Exception:  # what it shows is the worker's: it must not end the wait for the answer
            logger.warning("what a call showed (%s) cannot be shown here", kind, exc_info=True)

    def _value(self, value: object) -> None:
        if isinstance(value, str) or _shell() is None:
            self._write("stdout", f"{value}\n")
            return
        from IPython.display import display

        with bars_aside():
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
            _, bar = self._bars.popitem()  # the innermost first, as loops end
            try:
                bar.close()
            except Exception:
                logger.debug("a bar cannot be closed", exc_info=True)


def publish(
    kind: str, content: dict[str, Any], metadata: dict[str, Any], buffers: Sequence[Any] = ()
) -> None:
    """Show what IPython has shown elsewhere as if it had been shown here: see `Display.publish`."""
    shell = _shell()
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
        case _ if kind in _COMM_TYPES:
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
    """Let a worker's widgets appear in the notebook and follow their state.

    One way only: a slider of a worker shows, but moving it reaches nobody.
    """
    kernel = getattr(_shell(), "kernel", None)
    if kernel is not None:
        kernel.session.send(
            kernel.iopub_socket,
            kind,
            content,
            metadata=metadata,
            buffers=list(buffers),
            parent=kernel.get_parent(),
            ident=kernel._topic(kind),  # noqa: SLF001 - as its own comms do
        )


def _shell() -> InteractiveShell | None:
    """Return IPython's shell, if there is one."""
    module = sys.modules.get("IPython.core.interactiveshell")
    if module is None or not module.InteractiveShell.initialized():
        return None
    shell: InteractiveShell = module.InteractiveShell.instance()
    return shell


def echo(stream: str, text: str) -> None:
    """Print what a call printed."""
    target = sys.stdout if stream == "stdout" else sys.stderr
    if target is not None:
        target.write(text)


def _directly(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)
