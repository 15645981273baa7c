"""Sessions in which nothing is kept, and notebooks whose sessions are gone."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from snakepit_kernel.sessions.state import SessionState, open_session
from snakepit_kernel.store import notebook_table
from snakepit_kernel.store.notebook_table import NotebookRow
from snakepit_kernel.store.store import Store

DAY = 86400.0

CONTENT = {
    "variable": lambda state: state.variables.register("x", "integer", 1),
    "program": lambda state: state.programs.put("p", 1),
    "metadata": lambda state: state.metadata.update({"note": 1}),
    "host tool": lambda state: state.remember_host_tools(["ask"]),
    "shell": lambda state: state.store.sessions.set_shell_state(state.number, b"x=1"),
}


def age(path: Path, seconds: float) -> None:
    """Make all sessions look as if nobody had used them for so long."""
    with sqlite3.connect(path) as connection:
        connection.execute(
            "UPDATE sessions SET used = used - ?, expires = expires - ?", (seconds, seconds)
        )
    connection.close()


def names(store: Store) -> set[str]:
    return {summary.session.id for summary in store.sessions.all()}


@pytest.mark.parametrize("kind", CONTENT)
def test_a_session_is_empty_until_anything_is_kept_in_it(store, kind):
    state: SessionState = open_session("s", store=store, ttl=30 * DAY)
    assert not store.sessions.has_content(state.number)

    CONTENT[kind](state)

    assert store.sessions.has_content(state.number)
    assert not store.sessions.delete_if_empty("s")
    assert names(store) == {"s"}


def test_an_empty_session_is_deleted_and_counts_no_more(store):
    open_session("s", store=store)

    assert store.sessions.delete_if_empty("s")
    assert not store.sessions.delete_if_empty("s")
    assert (names(store), store.sessions.count()) == (set(), 0)


def test_a_session_that_stays_empty_does_not_live_as_long_as_one_with_content(store, path):
    for name, ttl in {"empty": 30 * DAY, "full": 30 * DAY, "kept": None, "brief": 3600.0}.items():
        state = open_session(name, store=store, ttl=ttl)
        if name == "full":
            state.variables.register("x", "integer", 1)

    age(path, 600.0)
    assert store.sweep() == []
    age(path, 3.1 * DAY)
    assert {row.id for row in store.sweep()} == {"empty", "brief"}  # the brief one has expired
    assert names(store) == {"full", "kept"}
    age(path, 29 * DAY)
    assert {row.id for row in store.sweep()} == {"full"}


def test_a_notebook_is_forgotten_when_it_was_not_seen_for_long_and_its_session_is_gone(
    store, monkeypatch
):
    open_session("there", store=store)
    for name in ("there", "gone"):
        store.notebooks.note(
            NotebookRow(session=name, path="/a", inode=1, born=2.5, cells=frozenset("x"), kernel="")
        )

    store.sweep()
    found = store.notebooks.find(path="/a", inode=0, kernel="", session="")
    assert {(row.session, row.born, row.cells) for row in found} == {
        ("there", 2.5, frozenset("x")),
        ("gone", 2.5, frozenset("x")),
    }
    monkeypatch.setattr(notebook_table, "NOTEBOOK_TTL", -1.0)
    store.sweep()
    assert [
        row.session for row in store.notebooks.find(path="/a", inode=0, kernel="", session="")
    ] == ["there"]
