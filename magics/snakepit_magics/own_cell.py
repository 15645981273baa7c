"""What makes a worker's cell a cell of the notebook: its value is `_`, and it can ask questions."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from snakepit_kernel import CellResult
from snakepit_kernel.output.display import publish

MAX_KEPT_BYTES = 1 << 20
"""Size of the largest value that is copied to the notebook only because it was shown."""

_MAX_SHOWN = 200


class ValueInWorker:
    """Stands for the value of a cell that was not copied to the notebook.

    Parameters
    ----------
    text
        How the worker has shown it.
    """

    def __init__(self, text: str) -> None:
        first = text.split("\n", 1)[0][:_MAX_SHOWN]
        self._text = first if first == text else f"{first} …"

    def __repr__(self) -> str:
        return (
            f"<in the worker only: {self._text}; it is large, or cannot be copied. "
            "Give it a name in the cell: %snakepit pull NAME copies that>"
        )


class ShownValue:
    """The value of a worker's cell: shown with the prompt of the notebook's cell, and kept as `_`.

    Parameters
    ----------
    shell
        The notebook's shell.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._content: dict[str, Any] | None = None

    def show(self, content: dict[str, Any]) -> None:
        """Show the value of a worker's cell, in the forms that the worker has made."""
        hook = self._shell.displayhook
        if sys.displayhook is not hook:  # %%capture, for example
            publish("execute_result", content, {})
            return
        self._content = content
        hook.start_displayhook()
        hook.write_output_prompt()
        hook.write_format_data(content["data"], content.get("metadata", {}))
        hook.finish_displayhook()

    def keep(self, result: CellResult) -> None:
        """Make it the notebook's `_`, and the ``Out`` of the cell, as far as it was copied."""
        if self._content is None or not result.ok:
            return
        value = result.value
        if result.value_error is not None:
            value = ValueInWorker(self._content["data"].get("text/plain", ""))
        self._shell.displayhook.update_user_ns(value)


def asker(shell: InteractiveShell) -> Callable[[str, bool], str] | None:
    """Return a function that asks the user for a line; None if nobody can be asked here."""
    kernel = getattr(shell, "kernel", None)
    if kernel is not None and not getattr(kernel, "_allow_stdin", False):
        return None

    def ask(prompt: str, is_password: bool) -> str:
        return getpass.getpass(prompt) if is_password else input(prompt)

    return ask
