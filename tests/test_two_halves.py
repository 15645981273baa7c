"""A notebook whose kernel ends in the middle goes on where it stopped (acceptance case 38)."""

from __future__ import annotations

import json
import shutil
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import websocket
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NOTEBOOK = NOTEBOOKS / "sessions.ipynb"
SOON = 5.0

Half = list[Any]

FORGOTTEN = {"sessions": "ConstraintViolation", "shells": "text"}
"""A name of the first half of each notebook that the second half has not got."""

COMPILES = pytest.mark.skipif(not shutil.which("cc"), reason="shells.ipynb needs a C compiler")
EACH = [pytest.param(name, marks=[COMPILES] if name == "shells" else []) for name in FORGOTTEN]


def halves(notebook: Path = NOTEBOOK) -> tuple[Half, Half]:
    """Return the code cells of a notebook before the restart, and those behind it."""
    cells = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    second = [cell for cell in cells if "second-half" in cell.metadata.get("tags", [])]
    return [cell for cell in cells if cell not in second], second


def shown_by(outputs: list[Any]) -> str:
    """Return what a cell shows, as text."""
    texts = [output.get("text") or output.get("data", {}).get("text/plain") for output in outputs]
    return "".join(filter(None, texts)).strip()


def expected_of(cell: Any) -> str | None:
    """Return what a cell shows each time; None where that differs."""
    is_stable = "nbval-ignore-output" not in cell.metadata.get("tags", [])
    return shown_by(cell.outputs) if is_stable else None


PID = "import os; print(os.getpid(), {name!r} in globals())"


def check(half: Half, run: Callable[[str], str], name: str = "sessions") -> tuple[int, bool]:
    """Run a half; return the kernel's pid, and whether a name of the first half is known."""
    run("%snakepit")  # which tells, once, what a restart had to end
    for cell in half:
        shown, expected = run(cell.source), expected_of(cell)
        assert expected in {None, shown}, cell.source
    pid, is_known = run(PID.format(name=FORGOTTEN[name])).split()
    return int(pid), is_known == "True"


def test_the_halves_are_more_than_nothing():
    first, second = halves()

    assert [expected_of(cell) for cell in second] == [
        "{'temperature': 1.2, 'epochs': 3}",
        "",
        "trained 2.1",
        "[0.7, 1.2]",
        None,  # which pools end depends on whether the kernel was restarted
    ]
    assert len(first) == 7
    first, second = halves(NOTEBOOKS / "shells.ipynb")
    assert expected_of(first[1]) == "FAILED: a tab: 1, not 2\nexit status 1"
    assert expected_of(second[1]).endswith("words.h\nall tests have passed")
    assert len(first) + len(second) == 19


@pytest.mark.parametrize("name", EACH)
def test_a_notebook_goes_on_after_a_restart_in_nbclient(tmp_path, name):
    first, second = halves(NOTEBOOKS / f"{name}.ipynb")
    client = NotebookClient(nbformat.v4.new_notebook(metadata=_kernelspec()))

    def run(source: str) -> str:
        cell = nbformat.v4.new_code_cell(source)
        client.nb.cells.append(cell)
        client.execute_cell(cell, len(client.nb.cells) - 1)
        return shown_by(cell.outputs)

    with client.setup_kernel(cwd=str(tmp_path)):
        before = check(first, run, name)
        run_sync(client.km.restart_kernel)()
        run_sync(client.kc.wait_for_ready)(timeout=30)
        after = check(second, run, name)

    assert before[1]
    assert not after[1]
    assert before[0] != after[0]


def _kernelspec() -> dict[str, Any]:
    return {"kernelspec": {"name": "snakepit", "display_name": "S", "language": "python"}}


# -- a server --------------------------------------------------------------------------------------


def open_notebook(server: Any, path: str) -> str:
    """Open a notebook, as its page does; return the id of its kernel."""
    opened = {"path": path, "name": path, "type": "notebook", "kernel": {"name": "snakepit"}}
    return server.request("POST", "sessions", opened)["kernel"]["id"]


def run(server: Any, kernel: str, source: str) -> str:
    """Run a cell over the websocket; return what it shows."""
    address = f"ws://127.0.0.1:{server.port}/api/kernels/{kernel}/channels?token=t"
    socket = websocket.create_connection(address, timeout=60)
    try:
        return shown_by(_outputs(socket, source))
    finally:
        socket.close()


def _outputs(socket: websocket.WebSocket, source: str) -> list[Any]:
    number = uuid.uuid4().hex
    header = {"msg_id": number, "msg_type": "execute_request", "version": "5.3"}
    header |= {"username": "", "session": number, "date": "2026-01-01T00:00:00Z"}
    content = {"code": source, "silent": False, "store_history": True, "user_expressions": {}}
    content |= {"allow_stdin": False, "stop_on_error": True}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
    socket.send(json.dumps({**message, "channel": "shell", "buffers": []}))
    outputs: list[Any] = []
    while True:
        got = json.loads(socket.recv())
        if got["parent_header"].get("msg_id") != number:
            continue
        assert got["msg_type"] != "error", got["content"]
        if got["msg_type"] in {"stream", "execute_result", "display_data"}:
            outputs.append(got["content"])
        elif got["msg_type"] == "status" and got["content"]["execution_state"] == "idle":
            return outputs


@pytest.mark.parametrize("name", EACH)
def test_a_notebook_goes_on_after_a_restart_by_a_server(start_server, tmp_path, name):
    notebook = NOTEBOOKS / f"{name}.ipynb"
    first, second = halves(notebook)
    (tmp_path / "mine.ipynb").write_text(notebook.read_text())
    server = start_server()
    kernel = open_notebook(server, "mine.ipynb")

    before = check(first, lambda source: run(server, kernel, source), name)
    server.request("POST", f"kernels/{kernel}/restart")
    after = check(second, lambda source: run(server, kernel, source), name)

    assert before[1]
    assert not after[1]
    assert before[0] != after[0]
    server.request("DELETE", f"kernels/{kernel}")


def test_a_notebook_goes_on_when_its_server_was_killed_and_another_opens_it(
    start_server, tmp_path, living
):
    first, second = halves()
    for name in ("mine.ipynb", "other.ipynb"):
        (tmp_path / name).write_text(NOTEBOOK.read_text())
    server = start_server()
    kernel = open_notebook(server, "mine.ipynb")
    before = check(first, lambda source: run(server, kernel, source))

    server.process.send_signal(signal.SIGKILL)
    server.process.wait(20)
    assert [str(item) for item in living() if not item.wait_gone(SOON)] == []
    server = start_server()
    kernel = open_notebook(server, "mine.ipynb")
    after = check(second, lambda source: run(server, kernel, source))

    assert before[1]
    assert not after[1]
    other = open_notebook(server, "other.ipynb")
    assert run(server, other, "%snakepit vars") == "no variables"
    for each in (kernel, other):
        server.request("DELETE", f"kernels/{each}")
