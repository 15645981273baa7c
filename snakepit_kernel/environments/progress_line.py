"""A line about work that takes a while: updated in a notebook, one for each step elsewhere."""

from __future__ import annotations

import sys
import time
import uuid
from typing import Any

from ..output import display
from ..printable import printable


class ProgressLine:
    """A line that is shown as soon as there is a first step, and says how long the work takes.

    Parameters
    ----------
    subject
        What is done, for people.
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._began = time.monotonic()
        self._step = ""
        self._display_id = ""

    def step(self, text: str) -> None:
        """Begin a step."""
        self._step = text
        self._show(f"{self._subject}: {text} …", is_news=True)

    def tick(self) -> None:
        """Show how long it has taken."""
        seconds = time.monotonic() - self._began
        self._show(f"{self._subject}: {self._step} … {seconds:.1f} s", is_news=False)

    def end(self, outcome: str) -> None:
        """Show the outcome, if a step was shown."""
        if self._step:
            seconds = time.monotonic() - self._began
            self._show(f"{self._subject}: {outcome} after {seconds:.1f} s", is_news=True)

    def _show(self, text: str, *, is_news: bool) -> None:
        text = printable(text)
        if not is_in_notebook():
            if is_news:
                display.echo("stderr", f"{text}\n")
            return
        kind = "update_display_data" if self._display_id else "display_data"
        self._display_id = self._display_id or f"snakepit-{uuid.uuid4().hex}"
        content: dict[str, Any] = {
            "data": {"text/plain": text},
            "transient": {"display_id": self._display_id},
        }
        display.publish(kind, content, {})


def is_in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, whose displays can be updated."""
    module = sys.modules.get("ipykernel.zmqshell")
    return module is not None and module.ZMQInteractiveShell.initialized()
