"""Questions of a worker's cell: ``input()``, ``getpass()`` and debuggers ask in the notebook."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import Notebook


@pytest.fixture
def one(open_notebook: Callable[..., Notebook]) -> Notebook:
    """A notebook with a pool of one worker."""
    notebook = open_notebook()
    assert notebook.run("pool = %snakepit start --workers 1").status == "ok"
    return notebook


class Answers:
    """Answers the questions of a cell, and notes what it asks and prints, in its order."""

    def __init__(self, notebook: Notebook, *answers: str) -> None:
        self._client = notebook.client
        self._answers = iter(answers)
        self.told: list[str] = []
        self.passwords: list[bool] = []

    def run(self, code: str) -> dict[str, Any]:
        reply = self._client.execute_interactive(
            code,
            allow_stdin=True,
            stdin_hook=self._answer,
            output_hook=self._note,
            timeout=60,
        )
        return dict(reply["content"])

    def _answer(self, message: dict[str, Any]) -> None:
        self.told.append(message["content"]["prompt"])
        self.passwords.append(message["content"]["password"])
        self._client.input(next(self._answers))

    def _note(self, message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            self.told.append(message["content"]["text"])

    @property
    def text(self) -> str:
        return "".join(self.told)


def test_a_cell_of_a_worker_asks_in_the_notebook(one):
    answers = Answers(one, "Ada", "secret")

    answers.run(
        "%%snakepit\nfrom getpass import getpass\nimport getpass as module\n"
        "print('before')\nname = input('name? ')\nword = module.getpass('word? ')\n"
        "print(name, word)"
    )

    assert answers.told == ["before\n", "name? ", "word? ", "Ada secret\n"]
    assert answers.passwords == [False, True]


def test_debuggers_work_in_a_cell_of_a_worker(one):
    stopped = Answers(one, "p mine", "c")
    stopped.run("%%snakepit\ndef f():\n    mine = 'here'\n    breakpoint()\n    return 1\nf()")
    assert "'here'\n" in stopped.text

    assert one.run("%%snakepit\ndef g():\n    lost = 'there'\n    1 / 0\ng()").status == "error"
    looking = Answers(one, "p lost", "q")
    looking.run("%%snakepit\n%debug")
    assert "'there'\n" in looking.text


def test_stop_ends_a_cell_that_waits_for_an_answer(one):
    one.run("%%snakepit\nkept = 7")
    request = one.client.execute("%%snakepit\ninput('waits')", allow_stdin=True)
    one.client.get_stdin_msg(timeout=30)

    began = time.monotonic()
    one.manager.signal_kernel(signal.SIGINT)
    while (reply := one.client.get_shell_msg(timeout=30))["parent_header"]["msg_id"] != request:
        pass

    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert time.monotonic() - began < 20  # a fraction of a second, where there is one
    assert one.run("%%snakepit\nkept").text == "7"


def test_a_question_ends_with_its_worker_and_with_the_time_for_the_cell(one):
    late = one.client.execute_interactive(
        "%%snakepit --timeout 0.5\ninput('waits')",
        allow_stdin=True,
        stdin_hook=lambda _: None,
        output_hook=lambda _: None,
        timeout=60,
    )
    assert late["content"]["ename"] == "CallTimeout"

    request = one.client.execute("%%snakepit\nimport os\nprint(os.getpid())\ninput('waits')")
    pid = 0
    while not pid:
        message = one.client.get_iopub_msg(timeout=30)
        pid = int(message["content"].get("text", 0)) if message["msg_type"] == "stream" else 0
    one.client.get_stdin_msg(timeout=30)
    os.kill(pid, signal.SIGKILL)
    while (reply := one.client.get_shell_msg(timeout=30))["parent_header"]["msg_id"] != request:
        pass
    assert reply["content"]["ename"] == "WorkerDied"


WHERE_NOT = {
    "%%snakepit\ninput()": "StdinNotImplementedError",
    "%%snakepit --all\ninput()": "StdinNotImplementedError",
    "pool.submit(lambda: input()).result()": "EOFError",
    "def ask():\n    import getpass\n    return getpass.getpass()\npool.submit(ask).result()": (
        "EOFError"
    ),
}


def test_where_nobody_can_be_asked_the_error_says_where_somebody_can(one):
    for code, kind in WHERE_NOT.items():
        allows = "--all" in code
        shown: list[dict[str, Any]] = []
        reply = one.client.execute_interactive(
            code, allow_stdin=allows, output_hook=shown.append, timeout=60
        )
        assert reply["content"]["ename"] == kind, reply
        texts = [message["content"].get("text", "") for message in shown]  # of --all, by worker
        assert "%%snakepit" in "".join([reply["content"]["evalue"], *texts])

    one.run(
        "def read():\n    import io, sys\n    own, sys.stdin = sys.stdin, io.StringIO('given')\n"
        "    try:\n        return input()\n    finally:\n        sys.stdin = own"
    )
    assert one.run("pool.submit(read).result()").text == "'given'"
