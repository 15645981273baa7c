"""Names of a worker in cells of ``%%snakepit``: completion, descriptions, and the cell's value."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import COLOUR, Notebook


@pytest.fixture
def one(open_notebook: Callable[..., Notebook]) -> Notebook:
    """A notebook with a pool of one worker, that has some names."""
    notebook = open_notebook()
    assert notebook.run("pool = %snakepit start --workers 1").status == "ok"
    notebook.run(
        "%%snakepit\nremote_number = 1\n"
        "def remote_function(first, second=2):\n    '''Does it there.'''\n"
        "class Thing:\n    remote_part = 1\nremote_thing = Thing()"
    )
    notebook.run("local_number = 1")
    return notebook


def described(notebook: Notebook, code: str) -> str:
    request = notebook.client.inspect(code, len(code))
    while True:
        reply = notebook.client.get_shell_msg(timeout=30)
        if reply["parent_header"]["msg_id"] == request:
            data: dict[str, Any] = reply["content"]["data"]
            return COLOUR.sub("", data.get("text/plain", ""))


def test_names_of_the_worker_are_completed_in_its_cells(one):
    assert {"remote_number", "remote_function", "remote_thing"} <= set(
        one.completions("%%snakepit\nx = 1\nremote_")
    )
    completed = one.complete("%%snakepit --session s2\n%%time\nremote_")
    assert "remote_number" not in completed["matches"], "another session has no such names"

    reply = one.complete("%%snakepit\nremote_thing.rem")
    line = "%%snakepit\nremote_thing."
    assert reply["matches"] == [".remote_part"]
    assert (reply["cursor_start"], reply["cursor_end"]) == (len(line) - 1, len(line) + 3)
    assert "local_number" not in one.completions("%%snakepit\nremote_")
    assert "remote_number" not in one.completions("remote_"), "nor in cells of the notebook"


def test_names_of_the_worker_are_described_in_its_cells(one):
    text = described(one, "%%snakepit\nremote_function")

    assert "remote_function(first, second=2)" in text
    assert "Does it there." in text
    assert described(one, "remote_function") == ""
    assert "sum(" in described(one, "sum")


def test_a_busy_worker_is_not_waited_for(one, tmp_path):
    go = tmp_path / "go"
    one.run(
        "def wait():\n    import os, time\n"
        f"    while not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
        "busy = pool.submit(wait)"
    )

    began = time.monotonic()
    assert "local_number" in one.completions("%%snakepit\nlocal_num")
    assert described(one, "%%snakepit\nremote_function") == ""
    assert time.monotonic() - began < 10
    assert one.run("pool.stats().queued").text == "0", "nothing goes on waiting"
    go.touch()


def test_the_value_of_a_workers_cell_is_the_notebooks_last_value(one):
    shown = one.run("%%snakepit\n[1, 2]")
    (result,) = [each for each in shown.raw if each["msg_type"] == "execute_result"]
    count = result["content"]["execution_count"]

    assert one.run(f"_, Out[{count}], _{count}").text == "([1, 2], [1, 2], [1, 2])"
    assert "display_data" not in shown.messages

    assert one.run("%%snakepit\nimport pandas\npandas.DataFrame({'a': [1]})").data[0].keys() == {
        "text/plain",
        "text/html",
    }
    assert one.run("_.a.sum()").text == "np.int64(1)"
    for code in ("%%snakepit\n3;", "%%snakepit\nx = 4", "%%capture\n%%snakepit\n5"):
        one.run(code)
        assert one.run("int(_)").text == "1", code


def test_a_value_that_is_too_large_to_be_kept_says_how_to_get_it(one):
    shown = one.run("%%snakepit\nimport numpy\nlarge = numpy.arange(10**6)\nlarge")

    assert shown.text.startswith("array([")
    kept = one.run("_").text
    assert kept.startswith("<in the worker only: array([     0,      1,      2, ")
    assert kept.endswith("Give it a name in the cell: %snakepit pull NAME copies that>")
