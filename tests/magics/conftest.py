"""A notebook: a real kernel, and a client that runs cells in it."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Shown:
    """What a cell showed."""

    status: str = ""
    stdout: str = ""
    stderr: str = ""
    data: list[dict[str, Any]] = field(default_factory=list)
    error: tuple[str, str] | None = None
    traceback: str = ""
    order: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    pages: list[dict[str, Any]] = field(default_factory=list)
    raw: list[dict[str, Any]] = field(default_factory=list)  # of those that show something
    request: str = ""

    def order_of_kinds(self) -> list[tuple[str, str | None]]:
        """Return each message's type with its text or HTML; images have none."""
        return [
            (
                message["msg_type"],
                message["content"].get("text")
                or message["content"].get("data", {}).get("text/html"),
            )
            for message in self.raw
        ]

    @property
    def text(self) -> str:
        return "\n".join(item.get("text/plain", "") for item in self.data)


class Notebook:
    """One kernel and its client."""

    def __init__(self, env: dict[str, str], kernel: str = "snakepit") -> None:
        self.manager = KernelManager(kernel_name=kernel)
        self.manager.start_kernel(env={**os.environ, **env}, stderr=-3)
        self.client = self.manager.client()
        self.client.start_channels()
        self._wait_ready()

    def run(self, code: str) -> Shown:
        while (shown := self._run(code)).status == "aborted":
            pass  # the queue of a failed cell is dropped
        return shown

    def _run(self, code: str) -> Shown:
        shown = Shown()
        reply = self.client.execute_interactive(
            code, output_hook=lambda message: self._take(shown, message), timeout=60
        )
        shown.status = reply["content"]["status"]
        shown.request = reply["parent_header"]["msg_id"]
        payloads = reply["content"].get("payload", ())
        shown.pages = [each["data"] for each in payloads if each["source"] == "page"]
        return shown

    def late_messages(self, shown: Shown, count: int) -> list[dict[str, Any]]:
        """Wait for messages that appear in a cell that has ended."""
        late: list[dict[str, Any]] = []
        while len(late) < count:
            message = self.client.get_iopub_msg(timeout=30)
            if message["parent_header"].get("msg_id") == shown.request:
                late.append(message)
        return late

    def _take(self, shown: Shown, message: dict[str, Any]) -> None:
        content, kind = message["content"], message["msg_type"]
        shown.messages.append(kind)
        if kind not in {"status", "execute_input"}:
            shown.raw.append(message)
        if kind == "stream":
            setattr(shown, content["name"], getattr(shown, content["name"]) + content["text"])
            shown.order.append(content["text"].strip())
        elif kind in {"display_data", "execute_result", "update_display_data"}:
            shown.data.append(content["data"])
            shown.order.append(content["data"].get("text/plain", ""))
        elif kind == "error":
            shown.error = (content["ename"], content["evalue"])
            shown.traceback = COLOUR.sub("", "\n".join(content["traceback"]))

    def interrupt_after(self, seconds: float, code: str) -> tuple[dict[str, Any], float]:
        """Run a cell, interrupt it; return the reply, and how long that took."""
        request = self.client.execute(code)
        time.sleep(seconds)  # the cell has to be running; its own output cannot tell
        began = time.monotonic()
        self.manager.signal_kernel(signal.SIGINT)
        while True:
            reply = self.client.get_shell_msg(timeout=30)
            if reply["parent_header"]["msg_id"] == request:
                return reply["content"], time.monotonic() - began

    def restart(self) -> None:
        self.manager.restart_kernel()
        self._wait_ready()

    def crash(self) -> None:
        """Kill the kernel, which cannot end its pools then, and start it again."""
        os.kill(self.manager.provisioner.pid, signal.SIGKILL)
        self.restart()

    def _wait_ready(self) -> None:
        """Wait for ipykernel's welcome, which says that output arrives."""
        while self.client.get_iopub_msg(timeout=60)["msg_type"] != "iopub_welcome":
            pass

    def completions(self, line: str) -> list[str]:
        return list(self.complete(line)["matches"])

    def complete(self, line: str) -> dict[str, Any]:
        """Give the reply to Tab at the end of some code."""
        request = self.client.complete(line, len(line))
        while True:
            reply = self.client.get_shell_msg(timeout=30)
            if reply["parent_header"]["msg_id"] == request:
                return reply["content"]

    def help(self, name: str) -> str:
        request = self.client.inspect(name, len(name))
        while True:
            reply = self.client.get_shell_msg(timeout=30)
            if reply["parent_header"]["msg_id"] == request:
                return COLOUR.sub("", reply["content"]["data"]["text/plain"])

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def open_notebook() -> Iterator[Callable[..., Notebook]]:
    """Open notebooks that are closed with the test."""
    notebooks: list[Notebook] = []

    def open_one(kernel: str = "snakepit", **env: str) -> Notebook:
        notebooks.append(Notebook(env, kernel))
        return notebooks[-1]

    yield open_one
    for notebook in notebooks:
        notebook.close()


@pytest.fixture
def notebook(open_notebook: Callable[..., Notebook]) -> Notebook:
    """A notebook with a pool of two workers, named ``pool`` there."""
    notebook = open_notebook()
    shown = notebook.run("pool = %snakepit start --workers 2")
    assert shown.status == "ok", shown
    return notebook


@pytest.fixture(scope="module")
def shared_notebook() -> Iterator[Notebook]:
    """A notebook with a pool of two workers, for tests that start and end no process there.

    What a worker opens for its first cell is open already.
    """
    notebook = Notebook({})
    try:
        shown = notebook.run("pool = %snakepit start --workers 2")
        assert shown.status == "ok", shown
        assert notebook.run("%%snakepit --all\n0").status == "ok"
        yield notebook
    finally:
        notebook.close()
