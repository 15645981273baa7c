"""The session of a notebook that is renamed in a Jupyter server, as JupyterLab does it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import websocket


class Lab:
    """What JupyterLab asks of its server for one notebook.

    Parameters
    ----------
    server
        The server.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        made = server.request("POST", "contents", {"type": "notebook"})
        self.path = made["path"]
        self.save(f"{self.path}-cell")
        self._session = server.request("POST", "sessions", self._model())
        self.kernel = self._session["kernel"]["id"]

    def _model(self) -> dict[str, Any]:
        where = {"path": self.path, "name": self.path, "type": "notebook"}
        return {**where, "kernel": {"name": "snakepit"}}

    def save(self, *cells: str) -> None:
        code = [
            {"cell_type": "code", "id": cell.replace(".", "-"), "source": "", "metadata": {}}
            | {"outputs": [], "execution_count": None}
            for cell in cells
        ]
        content = {"cells": code, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        self._server.request(
            "PUT", f"contents/{self.path}", {"type": "notebook", "content": content}
        )

    def rename(self, path: str) -> None:
        self._server.request("PATCH", f"contents/{self.path}", {"path": path})
        self.path = path
        model = {"path": path, "name": path, "type": "notebook"}
        self._server.request("PATCH", f"sessions/{self._session['id']}", model)

    def restart(self) -> None:
        self._server.request("POST", f"kernels/{self.kernel}/restart")

    def reopen(self) -> None:
        self._server.request("DELETE", f"sessions/{self._session['id']}")
        self._session = self._server.request("POST", "sessions", self._model())
        self.kernel = self._session["kernel"]["id"]

    def run(self, code: str) -> str:
        """Return what a cell shows as text."""
        address = f"ws://127.0.0.1:{self._server.port}/api/kernels/{self.kernel}/channels?token=t"
        socket = websocket.create_connection(address, timeout=60)
        request = uuid.uuid4().hex
        header = {"msg_id": request, "msg_type": "execute_request", "session": request}
        header |= {"username": "", "version": "5.3", "date": ""}
        content = {"code": code, "silent": False, "allow_stdin": False, "stop_on_error": True}
        message = {"header": header, "parent_header": {}, "metadata": {}, "channel": "shell"}
        socket.send(json.dumps({**message, "content": content}))
        shown: list[str] = []
        try:
            while True:
                answer = json.loads(socket.recv())
                if answer["parent_header"].get("msg_id") != request:
                    continue
                content = answer["content"]
                shown += content.get("traceback", [])
                shown += [content.get("text", ""), content.get("data", {}).get("text/plain", "")]
                if answer["msg_type"] == "status" and content["execution_state"] == "idle":
                    return "".join(shown)
        finally:
            socket.close()


@pytest.fixture
def open_lab(start_server: Callable[..., Any]) -> Callable[[], Lab]:
    """Open new notebooks in one server."""
    server = start_server()
    return lambda: Lab(server)


def test_a_notebook_that_is_renamed_keeps_its_session_and_the_next_has_its_own(open_lab):
    first = open_lab()
    first.run("%snakepit set secret='from-A'")
    path = first.path

    first.rename("analysis.ipynb")
    first.save("all", "new", "cells")
    first.restart()
    assert first.run("%snakepit get secret") == "'from-A'"

    second = open_lab()
    assert second.path == path
    assert "there is no variable 'secret'" in second.run("%snakepit get secret")
    second.run("%snakepit set secret='from-B'")
    second.rename("b.ipynb")
    first.reopen()
    second.restart()
    assert first.run("%snakepit get secret") == "'from-A'"
    assert second.run("%snakepit get secret") == "'from-B'"
