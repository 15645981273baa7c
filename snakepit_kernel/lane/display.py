"""Where a call shows what it has to show before its answer: text, progress bars, values."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import sys
from collections.abc import Callable
from typing import Any

from .bars import Bar, LineBar, Settings, bars_aside, open_bar

logger = logging.getLogger(__name__)


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

    def write(self, stream: str, text: str) -> None:
        """Print what was printed to ``"stdout"`` or ``"stderr"``."""
        self._run(self._write, stream, text)

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

    def _value(self, value: object) -> None:
        module = sys.modules.get("IPython.core.interactiveshell")
        if isinstance(value, str) or module is None or not module.InteractiveShell.initialized():
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


def echo(stream: str, text: str) -> None:
    """Print what a call printed."""
    target = sys.stdout if stream == "stdout" else sys.stderr
    if target is not None:
        target.write(text)


def _directly(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)
