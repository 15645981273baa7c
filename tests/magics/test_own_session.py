"""The session of a notebook: it follows the file, and ends when it is told, or when it is empty."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snakepit_kernel import open_session
from snakepit_kernel.store.store import open_store


def make_notebook(path: Path, *cells: str) -> Path:
    code = [{"cell_type": "code", "id": cell, "source": ""} for cell in cells or (path.stem,)]
    path.write_text(json.dumps({"cells": code}))
    return path


@pytest.fixture
def open_file(open_notebook: Callable[..., Any]) -> Callable[[Path], Any]:
    """Open the kernel of a notebook's file, as Jupyter Server does."""
    return lambda path: open_notebook(JPY_SESSION_NAME=str(path))


def listed() -> set[str]:
    return {summary.session.id for summary in open_store().sessions.all()}


def test_a_session_follows_its_notebook_through_a_rename_and_is_not_given_to_the_next(
    open_file, tmp_path
):
    path = make_notebook(tmp_path / "Untitled.ipynb")
    first = open_file(path)
    first.run("%snakepit set secret='from A'")

    renamed = path.rename(tmp_path / "analysis.ipynb")
    second = open_file(make_notebook(path, "new"))
    refused = second.run("%snakepit get secret")
    assert "there is no variable 'secret' in this session" in refused.traceback
    assert "%snakepit set NAME=VALUE" in refused.traceback
    second.run("%snakepit set secret='from B'")
    first.restart()  # the server tells the kernel the old path

    assert first.run("%snakepit get secret").text == "'from A'"
    assert second.run("%snakepit get secret").text == "'from B'"
    second.close()
    assert open_file(renamed).run("%snakepit get secret").text == "'from A'"


def test_a_notebook_in_the_place_of_another_is_told_once_of_the_other_session(open_file, tmp_path):
    path = make_notebook(tmp_path / "a.ipynb")
    first = open_file(path)
    first.run("%snakepit set x=1")
    first.close()
    make_notebook(tmp_path / "new", "other").replace(path)

    second = open_file(path)
    refused = second.run("%snakepit get x")

    older = refused.stdout.split("%snakepit use ")[1].split()[0]
    assert refused.stdout.startswith("this notebook has the new session a-")
    assert second.run("%snakepit vars").stdout == ""
    second.run(f"%snakepit use {older}")
    assert second.run("%snakepit get x").text == "1"


def test_a_session_in_which_nothing_is_kept_ends_with_its_kernel(
    open_file, open_notebook, tmp_path
):
    one = open_file(make_notebook(tmp_path / "a.ipynb"))
    one.run("%snakepit start --workers 1")
    one.run("%%snakepit\nx = 1")
    assert len(listed()) == 1
    forked = one.run(
        "import os\nmagics = get_ipython().magics_manager.registry['SnakepitMagics']\n"
        "pid = os.fork()\n"
        "if pid == 0: magics.sessions.close(); os._exit(0)  # as an exit hook\n"
        "os.waitpid(pid, 0)[1]"
    )
    assert (forked.text, len(listed())) == ("0", 1)
    other = open_notebook()
    other.run("%snakepit set x=1")
    assert len(listed()) == 2

    one.manager.shutdown_kernel()
    other.manager.shutdown_kernel()

    (left,) = listed()
    assert open_session(left).variables["x"] == 1


def test_a_session_of_a_notebook_lives_thirty_days_or_as_long_as_it_is_told(open_notebook):
    notebook = open_notebook(SNAKEPIT_SESSION="mine")
    assert notebook.run("%snakepit set x=1").status == "ok"
    assert listed() == {"mine"}
    state = open_session("mine")
    assert state.ttl == 30 * 86400

    assert notebook.run("%snakepit use --ttl 90d").stdout == (
        "session mine lives 90 d from its last use\n"
    )
    goes = datetime.datetime.now().astimezone() + datetime.timedelta(days=90 * 1.05)
    shown = notebook.run("%snakepit sessions")
    assert "in 94 d" in shown.text
    assert f"{goes:%Y-%m-%d}" in shown.data[0]["text/html"]
    assert notebook.run("%snakepit use --ttl never").stdout == "session mine lives for ever\n"
    assert "never" in notebook.run("%snakepit sessions").text
    notebook.run("%snakepit use other --ttl 12h")
    assert open_session("other").ttl == 12 * 3600
    assert "session other;" in notebook.run("%snakepit").stdout


def test_the_end_of_a_session_within_days_is_told_once(open_notebook):
    state = open_session("mine", ttl=2 * 86400.0)
    state.variables.register("x", "integer", 1)
    notebook = open_notebook(SNAKEPIT_SESSION="mine")

    shown = notebook.run("%snakepit get x")

    assert shown.stdout.startswith("session mine ends 2 d after its last use, on 20")
    assert shown.stdout.endswith("; %snakepit use --ttl 30d keeps it longer\n")
    assert notebook.run("%snakepit get x").stdout == ""
    notebook.run("%snakepit use --ttl 30d")
    notebook.restart()
    assert notebook.run("%snakepit get x").stdout == ""


def test_types_have_their_names_of_python_too_and_a_wrong_one_is_told_how_to_change(open_notebook):
    notebook = open_notebook(SNAKEPIT_SESSION="mine")
    for name, kind in {"int": "integer", "str": "string", "bool": "boolean"}.items():
        value = {"int": 1, "str": "1x", "bool": True}[name]
        assert notebook.run(f"%snakepit set a={value} --type {name}").status == "ok"
        assert open_session("mine").variables.info("a").type == kind
        notebook.run("%snakepit del a")

    notebook.run("%snakepit set a=1")
    refused = notebook.run("%snakepit set a=2.5").stderr
    assert "takes a whole number, not float; %snakepit del a lets the next" in refused
    notebook.run("%snakepit del a")
    assert notebook.run("%snakepit set a=2.5").status == "ok"
