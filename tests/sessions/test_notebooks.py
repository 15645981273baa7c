"""Which session is a notebook's own: through renames, saves, copies and restarts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from jupyter_server.services.contents.fileio import atomic_writing

from snakepit_kernel.files import birth_of
from snakepit_kernel.sessions.notebooks import (
    CLOCK_SLACK,
    choose,
    find_own_session,
    name_of_path,
)
from snakepit_kernel.sessions.state import open_session
from snakepit_kernel.store.notebook_table import NotebookRow
from snakepit_kernel.store.store import Store

NATURAL = "a-0123abcd"


def text_of(*cells: str) -> str:
    return json.dumps(
        {"cells": [{"cell_type": "code", "id": cell, "source": ""} for cell in cells]}
    )


def make(path: Path, *cells: str) -> Path:
    path.write_text(text_of(*(cells or (f"of-{path.stem}", f"{path.stem}-2"))))
    return path


@pytest.fixture
def session_of(store: Store, tmp_path: Path) -> Callable[..., str]:
    """Return the session that a notebook's kernel chooses; each kernel has its own file."""

    def find(path: Path, kernel: str = "") -> str:
        name = f"kernel-{kernel or os.urandom(12).hex()}.json"
        connection = tmp_path / "runtime" / name
        connection.parent.mkdir(exist_ok=True)
        connection.touch()
        own = find_own_session(store, str(path), str(connection))
        open_session(own.name, store=store)  # as a command of the magics does
        return own.name

    return find


def test_a_renamed_notebook_finds_its_session_again(session_of, tmp_path):
    file = make(tmp_path / "Untitled.ipynb")
    before = session_of(file)
    (tmp_path / "elsewhere").mkdir()

    renamed = file.rename(tmp_path / "analysis.ipynb")
    assert session_of(renamed) == before
    moved = renamed.rename(tmp_path / "elsewhere" / "analysis.ipynb")
    assert session_of(moved) == before


def test_a_new_notebook_of_an_old_name_gets_a_session_of_its_own(session_of, tmp_path):
    file = make(tmp_path / "Untitled.ipynb")
    first = session_of(file)
    renamed = file.rename(tmp_path / "analysis.ipynb")

    second = session_of(make(file, "other"))
    assert second != first
    assert session_of(renamed) == first
    third = session_of(make(tmp_path / "Untitled1.ipynb"))
    renamed_too = file.rename(tmp_path / "b.ipynb")
    assert session_of(make(file, "third")) not in {first, second, third}
    assert session_of(renamed_too) == second


def test_the_path_of_a_notebook_that_was_opened_by_its_new_name_is_free(session_of, tmp_path):
    file = make(tmp_path / "Untitled.ipynb")
    first = session_of(file)
    renamed = file.rename(tmp_path / "analysis.ipynb")
    assert session_of(renamed) == first

    assert session_of(make(file, "other")) != first


def test_a_notebook_that_takes_the_place_of_a_deleted_one_gets_a_session_of_its_own(
    session_of, tmp_path
):
    file = make(tmp_path / "Untitled.ipynb")
    first = session_of(file)
    file.unlink()

    assert session_of(make(file, "other")) != first  # with the same inode, on many file systems


def test_a_copy_gets_a_session_of_its_own(session_of, tmp_path):
    file = make(tmp_path / "a.ipynb")
    first = session_of(file)

    assert session_of(Path(shutil.copy2(file, tmp_path / "a-Copy1.ipynb"))) != first
    renamed = file.rename(tmp_path / "b.ipynb")
    assert session_of(Path(shutil.copy2(renamed, file))) != first
    assert session_of(renamed) == first


def test_a_notebook_that_is_saved_keeps_its_session(session_of, tmp_path):
    file = make(tmp_path / "a.ipynb")
    first = session_of(file)

    with atomic_writing(str(file)) as saved:  # as Jupyter Server saves
        saved.write(text_of("all", "new", "cells"))

    assert session_of(file) == first


def test_a_notebook_that_was_replaced_by_another_version_of_itself_keeps_its_session(
    session_of, tmp_path
):
    file = make(tmp_path / "a.ipynb", "one", "two", "three")
    first = session_of(file)

    make(tmp_path / "new", "one", "three", "four").replace(file)  # as git checkout does
    assert session_of(file) == first
    make(tmp_path / "new", "five", "six").replace(file)
    assert session_of(file) != first


def test_a_doubtful_session_is_named_while_it_is_there(session_of, store, tmp_path):
    file = make(tmp_path / "a.ipynb", "one")
    first = session_of(file)
    make(tmp_path / "new", "other").replace(file)

    own = find_own_session(store, str(file), "")

    assert (own.name != first, own.doubtful) == (True, first)
    make(tmp_path / "newer", "third").replace(file)
    assert find_own_session(store, str(file), "").doubtful is None  # the second was never opened


def test_a_restart_comes_back_although_the_server_tells_the_old_path(session_of, tmp_path):
    file = make(tmp_path / "Untitled.ipynb")
    first = session_of(file, kernel="a" * 32)
    renamed = file.rename(tmp_path / "analysis.ipynb")

    assert session_of(file, kernel="a" * 32) == first  # no file has that path
    second = session_of(make(file, "other"), kernel="b" * 32)
    assert second != first
    assert session_of(file, kernel="a" * 32) == first  # another notebook has that path
    assert session_of(file, kernel="b" * 32) == second
    assert session_of(renamed) == first


def test_a_connection_file_that_is_named_by_a_pid_is_no_identity(session_of, tmp_path):
    one, other = make(tmp_path / "a.ipynb"), make(tmp_path / "b.ipynb")

    assert session_of(one, kernel="4711") != session_of(other, kernel="4711")


def test_a_path_that_has_no_file_here_makes_the_name(session_of, tmp_path):
    path = tmp_path / "not here" / "My analysis.ipynb"

    assert session_of(path) == session_of(path) == name_of_path(str(path))
    path.parent.mkdir()
    assert session_of(make(path)) == name_of_path(str(path))


def test_a_file_that_is_no_notebook_has_a_session_too(session_of, tmp_path):
    for text in ("", "[]", '{"cells": 3}', '{"cells": [3, {"id": 4}]}', "[" * 100_000):
        (tmp_path / "a.ipynb").write_text(text)
        assert session_of(tmp_path / "a.ipynb") == name_of_path(str(tmp_path / "a.ipynb"))


def test_when_a_file_was_made_is_known_and_stays_when_it_is_renamed_and_written(tmp_path):
    file = make(tmp_path / "a.ipynb")
    born = birth_of(str(file))

    assert abs(born - file.stat().st_ctime) < 1.0
    renamed = file.rename(tmp_path / "b.ipynb")
    renamed.write_text("more")
    assert birth_of(str(renamed)) == born
    assert birth_of(str(tmp_path / "nowhere")) == 0.0


# -- the choice, where the file system leaves a doubt ----------------------------------------------


def row(**known: object) -> NotebookRow:
    given = {"path": "/a.ipynb", "inode": 7, "born": 1000.0, "cells": frozenset("ab")}
    return NotebookRow(**{"session": "known", "kernel": "", **given, **known})  # type: ignore[arg-type]


def chosen(
    notebook: NotebookRow, *known: NotebookRow, made: float | None = None, started: float = 0.0
) -> tuple[str, str | None]:
    found = choose(
        replace(notebook, session=""),
        known,
        natural=NATURAL,
        made=made,
        started=started,
        has_moved=lambda _: False,
    )
    is_known = found.session in {"known", NATURAL}
    return (found.session if is_known else "fresh"), found.doubtful


def test_an_inode_is_the_same_file_only_with_a_time_or_with_common_cells():
    there = row(path="/b.ipynb", born=0.0)

    assert chosen(there, row()) == ("known", None)
    assert chosen(there, row(cells=frozenset("xyz"))) == (NATURAL, None)
    assert chosen(row(path="/b.ipynb", born=2000.0), row()) == (NATURAL, None)
    bare = row(born=0.0, cells=frozenset())
    assert chosen(bare, bare) == ("known", None)
    assert chosen(replace(bare, path="/b.ipynb"), bare) == (NATURAL, None)


def test_a_file_that_is_newer_than_its_kernel_is_another_notebooks():
    newer = row(inode=8, born=1000.0 + CLOCK_SLACK + 1)

    assert chosen(newer, started=1000.0) == ("fresh", None)
    assert chosen(newer, row(), started=1000.0) == ("fresh", "known")
    assert chosen(newer, started=1002.0) == (NATURAL, None)


def test_a_session_from_before_notebooks_were_noted_is_taken_by_a_file_that_is_older():
    assert chosen(row(), made=1500.0) == (NATURAL, None)
    assert chosen(row(born=2000.0), made=1500.0) == ("fresh", NATURAL)
    assert chosen(row(born=0.0), made=1500.0) == (NATURAL, None)


def test_a_path_without_a_file_whose_notebook_was_seen_is_doubtful():
    gone = row(inode=0, born=0.0, cells=frozenset())

    assert chosen(gone, row()) == ("fresh", "known")
    assert chosen(gone) == (NATURAL, None)
