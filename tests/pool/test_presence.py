"""A Jupyter server that culls idle kernels, and a notebook whose pool works in the background."""

from __future__ import annotations

import json
import threading
import time
import uuid

import pytest
import websocket

from snakepit_kernel.pool.housekeeping import MESSAGE

CULLING = tuple(
    f"--MappingKernelManager.{option}"
    for option in ("cull_idle_timeout=3", "cull_interval=1", "cull_connected=True")
)

OPEN = "import time, snakepit_kernel; pool = snakepit_kernel.Pool(1)"
FUTURE = """
def tell(_):
    with open("done", "w") as file:
        file.write(str(time.time()))
pool.submit(time.sleep, 8).add_done_callback(tell)
"""
CELL = (
    "%%snakepit --background\nimport time; time.sleep(8); open('done', 'w').write(str(time.time()))"
)


class ControlPage:
    """An open notebook, as its page talks with the server."""

    def __init__(self, server):
        self.server = server
        self.kernel = server.request("POST", "kernels", {"name": "snakepit"})["id"]
        address = f"ws://127.0.0.1:{server.port}/api/kernels/{self.kernel}/channels?token=t"
        self.socket = websocket.create_connection(address, timeout=60)
        self.heard = []
        self.states = []

    def run(self, source):
        number = uuid.uuid4().hex
        header = {"msg_id": number, "msg_type": "execute_request", "version": "5.3"}
        header |= {"username": "", "session": number, "date": "2026-01-01T00:00:00Z"}
        content = {"code": source, "silent": False, "store_history": True}
        content |= {"user_expressions": {}, "allow_stdin": False, "stop_on_error": True}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        self.socket.send(json.dumps({**message, "channel": "shell", "buffers": []}))
        while True:
            got = json.loads(self.socket.recv())
            assert got["msg_type"] != "error", got["content"]
            if got["parent_header"].get("msg_id") != number:
                continue
            if got["content"].get("execution_state") == "idle":
                return

    def wait_until_culled(self, patience=40.0):
        """Return when the kernel is gone; note what it and the server say meanwhile."""
        listener = threading.Thread(target=self._listen)
        listener.start()
        deadline = time.monotonic() + patience
        try:
            while time.monotonic() < deadline:
                kernels = self.server.request("GET", "kernels")
                if not kernels:
                    return time.time()
                self.states += [kernel["execution_state"] for kernel in kernels]
                time.sleep(0.25)  # the server tells nobody that it culls
        finally:
            self.socket.close()
            listener.join()
        pytest.fail("the kernel is not culled")

    def _listen(self):
        try:
            while text := self.socket.recv():
                self.heard.append(json.loads(text))
        except (websocket.WebSocketException, OSError, ValueError):
            pass  # it is closed


@pytest.fixture
def open_page(start_server):
    server = start_server(*CULLING)
    return lambda: ControlPage(server)


@pytest.mark.parametrize(
    "cells", [(OPEN, FUTURE), ("%snakepit start --workers 1", CELL)], ids=["future", "cell"]
)
def test_background_work_keeps_its_notebook_until_it_is_done(open_page, tmp_path, cells):
    page = open_page()
    for cell in cells:
        page.run(cell)

    culled = page.wait_until_culled()

    done = float((tmp_path / "done").read_text())
    assert done < culled < done + 15
    told = [message for message in page.heard if message["msg_type"] == MESSAGE]
    assert 4 <= len(told) <= 12
    assert all(message["parent_header"] == {} for message in told)
    assert set(page.states) == {"idle"}
    busy = [m for m in page.heard if m["content"].get("execution_state") == "busy"]
    assert {m["parent_header"]["msg_type"] for m in busy} <= {"shutdown_request"}


def test_an_idle_pool_does_not_keep_its_notebook(open_page):
    page = open_page()
    page.run(OPEN)
    page.run("pool.submit(pow, 2, 3).result()")

    began = time.time()

    assert page.wait_until_culled() - began < 12
    assert [message for message in page.heard if message["msg_type"] == MESSAGE] == []
