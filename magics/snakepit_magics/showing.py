"""Showing in the notebook what a worker shows, as if the cell had run here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from IPython.core.interactiveshell import InteractiveShell

from snakepit_kernel import CellError, SnakepitError, ToolError
from snakepit_kernel.protocol.messages import ToolInfo

_COMM_TYPES = {"comm_open", "comm_msg", "comm_close"}


def shower(shell: InteractiveShell) -> Callable[[dict[str, Any]], None]:
    """Return what shows an iopub message of a worker where the current cell stands."""

    def show(message: dict[str, Any]) -> None:
        content = message["content"]
        match message["msg_type"]:
            case "stream":
                stream = sys.stdout if content["name"] == "stdout" else sys.stderr
                stream.write(content["text"])
                stream.flush()
            case "display_data" | "execute_result" | "update_display_data" as kind:
                shell.display_pub.publish(
                    data=content["data"],
                    metadata=content["metadata"],
                    transient=content.get("transient", {}),
                    update=kind == "update_display_data",
                )
            case "clear_output":
                shell.display_pub.clear_output(wait=content.get("wait", False))
            case kind if kind in _COMM_TYPES:
                _forward_comm(shell, message)

    return show


def _forward_comm(shell: InteractiveShell, message: dict[str, Any]) -> None:
    """Let a worker's widgets appear in the notebook and follow their state.

    One way only: a slider of a worker shows, but moving it reaches nobody.
    """
    kernel = getattr(shell, "kernel", None)
    if kernel is not None:
        kernel.session.send(
            kernel.iopub_socket,
            message["msg_type"],
            message["content"],
            metadata=message["metadata"],
            buffers=message.get("buffers"),
            parent=kernel.get_parent(),
            ident=kernel._topic(message["msg_type"]),  # noqa: SLF001 - as its own comms do
        )


def raise_here(error: CellError) -> NoReturn:
    """Raise a worker's exception so that the notebook shows its name, text and traceback."""
    # The name of an exception's class is what notebooks and nbclient show and filter by.
    names = {"__str__": lambda self: self.message, "__module__": error.__module__}
    kind = type(error.type_name, (CellError,), names)
    raise kind(error.type_name, error.message, error.traceback) from None


def shown_in_one_line(error: SnakepitError) -> SnakepitError:
    """Make an exception show its name and text, without frames: those are all ours."""
    shown = [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]
    error._render_traceback_ = lambda: shown  # type: ignore[attr-defined]
    return error


def as_cell_error(error: ToolError) -> CellError:
    """Make a tool's exception one that shows the worker's traceback alone."""
    lines = error.remote_traceback.rstrip().splitlines() or [str(error)]
    return CellError(error.type_name, error.message, lines)


def listed(tool: ToolInfo) -> str:
    """Return a tool as a line of a list, and its description's first line below."""
    about = tool.description.strip().splitlines()
    return "\n    ".join([f"{tool.name}{tool.signature}", *about[:1]])


def described(tool: ToolInfo) -> str:
    """Return all that is known of a tool: signature, description, options, schema."""
    options = ["idempotent"] if tool.idempotent else []
    if tool.timeout is not None:
        options.append(f"timeout: {tool.timeout:g} s")
    parts = [
        f"{tool.name}{tool.signature}",
        tool.description,
        "; ".join(options),
        json.dumps(tool.schema, indent=2, ensure_ascii=False),
    ]
    return "\n\n".join(part for part in parts if part)
