"""A Jupyter server with a notebook, and requests to the extension as its panel makes them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest


class Reply(NamedTuple):
    """What a server has replied."""

    status: int
    data: Any

    @property
    def message(self) -> str:
        return self.data["message"]


class Panel:
    """JupyterLab's panel, as the server sees it.

    Parameters
    ----------
    server
        The server.
    """

    def __init__(self, server: Any) -> None:
        self._address = f"http://127.0.0.1:{server.port}/snakepit"

    def ask(
        self, method: str, path: str, body: Any = None, *, token: str | None = "t", **headers: str
    ) -> Reply:
        if token is not None:
            headers["Authorization"] = f"token {token}"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self._address}/{path}", method=method, data=data, headers=headers
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, content = error.code, error.read()
        return Reply(status, json.loads(content) if content else None)

    def state(self) -> dict[str, Any]:
        status, data = self.ask("GET", "state")
        assert status == 200, data
        return data

    def kernel(self) -> dict[str, Any]:
        (kernel,) = self.state()["kernels"]
        return kernel

    def pool(self) -> dict[str, Any]:
        (pool,) = self.kernel()["pools"]
        return pool

    def worker(self) -> dict[str, Any]:
        (worker,) = self.pool()["workers"]
        return worker

    def command(self, pool: str, op: str, **fields: Any) -> Reply:
        return self.ask("POST", f"pools/{pool}", {"op": op, **fields})


@pytest.fixture(scope="module")
def server(start_server_for_all: Callable[..., Any]) -> Any:
    """A Jupyter server for all tests of a module."""
    return start_server_for_all()


@pytest.fixture(scope="module")
def panel(server: Any) -> Panel:
    """The panel of that server."""
    return Panel(server)


@pytest.fixture
def notebook(server: Any, served_notebook: Callable[[Any], Any]) -> Any:
    """A notebook with a pool of one worker, named ``shop``."""
    notebook = served_notebook(server)
    shown = notebook.run("import time\npool = %snakepit start --workers 1 --name shop")
    assert shown == "", shown
    yield notebook
    notebook.close()
