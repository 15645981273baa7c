"""Rendering of workers' output and errors, and of tools, in the notebook."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from IPython.core.error import UsageError

from snakepit_kernel import CellError, ToolError
from snakepit_kernel.output.display import flush, publish
from snakepit_kernel.printable import printable
from snakepit_kernel.protocol.messages import ToolInfo

from .own_cell import ShownValue

_USAGE = f"{UsageError.__name__}: "


def show(message: dict[str, Any]) -> None:
    """Show an iopub message of a worker in the current cell, except errors, which are raised."""
    if message["msg_type"] == "error":
        return
    content = message["content"]
    publish(message["msg_type"], content, message["metadata"], message.get("buffers") or ())
    if message["msg_type"] == "stream":
        flush(content["name"])


class CellView:
    """Shows the iopub messages of a worker's cell, without repeating its error.

    IPython prints a `UsageError` itself. Raised here, it is printed again: so its line is held back
    until the outcome of the cell is known.

    Parameters
    ----------
    value
        Shows the value of the cell; by default it is shown like other output.

    Attributes
    ----------
    error
        The error of the cell, if it has raised one.
    """

    def __init__(self, value: ShownValue | None = None) -> None:
        self.error: CellError | None = None
        self._value = value
        self._held_back = ""

    def show(self, message: dict[str, Any]) -> None:
        """Show a message."""
        content = message["content"]
        if message["msg_type"] == "status":
            return
        if message["msg_type"] == "error":
            self.error = CellError(content["ename"], content["evalue"], content["traceback"])
        self._release()
        if message["msg_type"] == "stream" and content["name"] == "stderr":
            text, mark, usage = content["text"].rpartition(_USAGE)
            if mark:
                self._held_back = mark + usage
                message = {**message, "content": {**content, "text": text}}
        if message["msg_type"] == "execute_result" and self._value is not None:
            self._value.show(content)
        else:
            show(message)

    def end(self, errors: Sequence[CellError]) -> None:
        """Show the line that was held back, unless an error that is raised here repeats it."""
        repeated = {f"{error.type_name}: {error.message}" for error in errors}
        if self._held_back.strip() in repeated:
            self._held_back = ""
        self._release()

    def _release(self) -> None:
        if self._held_back:
            sys.stderr.write(self._held_back)
            self._held_back = ""


def raise_here(error: CellError) -> NoReturn:
    """Raise a worker's exception so that the notebook shows its name, text and traceback."""
    if error.type_name == UsageError.__name__ and not error.traceback:
        raise UsageError(error.message)
    raise named_error(error) from None


def named_error(error: CellError) -> CellError:
    """Return a worker's exception as one whose class has the name of its own class there.

    That is what notebooks and nbclient show, and filter by.
    """
    names = {"__str__": lambda self: self.message, "__module__": error.__module__}
    kind = type(error.type_name, (CellError,), names)
    named: CellError = kind(error.type_name, error.message, error.traceback)
    return named


def raise_interrupt(interrupt: KeyboardInterrupt, error: CellError | None) -> NoReturn:
    """Raise the interrupt of a cell so that the notebook shows where the worker was."""
    if error is not None and error.type_name == KeyboardInterrupt.__name__:
        raise_here(error)
    raise without_traceback(interrupt) from None


E = TypeVar("E", bound=BaseException)


def without_traceback(error: E) -> E:
    """Make an exception show its name and text, without frames: all are this package's."""
    name = f"{type(error).__name__}: {error}".removesuffix(": ")
    shown = [name, *getattr(error, "__notes__", ())]
    error._render_traceback_ = lambda: shown  # type: ignore[attr-defined]
    return error


def as_cell_error(error: ToolError) -> CellError:
    """Convert a tool's exception to one that shows the worker's traceback alone."""
    # As plain text: IPython colours a cell's traceback, but not a tool's.
    text = printable(error.remote_traceback.rstrip(), lines=True)
    lines = text.splitlines() or [str(error)]
    return CellError(error.type_name, error.message, lines)


def format_in_list(tool: ToolInfo) -> str:
    """Format a tool for a list: its signature, and its description's first line below."""
    about = tool.description.strip().splitlines()
    return printable("\n    ".join([f"{tool.name}{tool.signature}", *about[:1]]), lines=True)


def format_in_full(tool: ToolInfo) -> str:
    """Format a tool in full: signature, description, options, schema."""
    options = ["idempotent"] if tool.idempotent else []
    if tool.timeout is not None:
        options.append(f"timeout: {tool.timeout:g} s")
    parts = [
        f"{tool.name}{tool.signature}",
        tool.description,
        "; ".join(options),
        json.dumps(tool.schema, indent=2, ensure_ascii=False),
    ]
    return printable("\n\n".join(part for part in parts if part), lines=True)
