"""Programs: named objects of a session, or of none."""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from contextlib import closing
from pathlib import Path

import pytest

from snakepit_kernel.errors import (
    ProgramDamaged,
    ProgramNotFound,
    QuotaExceeded,
    SessionNotFound,
    ValueTooLarge,
)
from snakepit_kernel.sessions import program_service
from snakepit_kernel.sessions.state import global_state, open_session
from snakepit_kernel.store import program_table as table

LARGE = b"x" * (table.FILE_FROM_BYTES + 1)


def files(store) -> list[Path]:
    folder = store.path.with_name(f"{store.path.name}-programs")
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("value", [{"weights": [1, 2]}, LARGE], ids=["small", "large"])
def test_a_program_is_stored_as_a_whole_and_read_as_a_copy(session, store, value):
    session.programs["model"] = value
    found = open_session("s", store=store).programs["model"]
    assert found == value
    assert session.programs["model"] is not found or type(value) is bytes
    info = session.programs.info("model")
    assert (info.name, info.version, info.source) == ("model", 1, "script")
    assert info.size_bytes >= len(value)
    assert len(files(store)) == (value is LARGE)
    assert "model" in session.programs
    assert (list(session.programs), len(session.programs)) == (["model"], 1)


def test_replacing_a_program_counts_its_version_and_leaves_no_file(session, store):
    for step in range(3):
        made = session.programs.put("p", LARGE + bytes([step]), metadata={"step": step})
    assert (made.version, made.metadata) == (3, {"step": 2})
    assert session.programs["p"][-1] == 2
    assert len(files(store)) == 1
    session.programs["p"] = 1
    assert files(store) == []


def test_a_program_that_is_not_there_is_named(session):
    session.programs["model"] = 1
    for use in (
        lambda: session.programs["modl"],
        lambda: session.programs.info("modl"),
        lambda: session.programs.__delitem__("modl"),
    ):
        with pytest.raises(ProgramNotFound, match="model"):
            use()
    assert session.programs.get("modl") is None


def test_deleting_a_program_or_its_session_removes_its_file(session, store):
    session.programs["a"] = LARGE
    session.programs["b"] = LARGE
    del session.programs["a"]
    assert len(files(store)) == 1
    session.delete()
    assert files(store) == []
    with pytest.raises(SessionNotFound):
        session.programs["b"] = 1
    with pytest.raises(SessionNotFound):
        session.programs["b"] = LARGE
    assert files(store) == []


def test_there_may_be_only_so_many_but_those_that_are_there_can_be_replaced(session, monkeypatch):
    monkeypatch.setattr(program_service, "MAX_PROGRAMS", 2)
    session = open_session("s", store=session.store)
    session.programs["a"] = session.programs["b"] = 1
    with pytest.raises(QuotaExceeded, match="2"):
        session.programs["c"] = LARGE
    session.programs["a"] = 2
    assert dict(session.programs) == {"a": 2, "b": 1}
    assert files(session.store) == []


def test_a_program_that_cannot_be_stored_leaves_the_old_one(session, monkeypatch, store):
    session.programs["p"] = 1
    with pytest.raises(TypeError, match="program 'p', a _thread.lock, cannot be stored"):
        session.programs["p"] = __import__("threading").Lock()
    monkeypatch.setattr(program_service, "MAX_PROGRAM_BYTES", 1000)
    with pytest.raises(ValueTooLarge, match="program 'p'"):
        session.programs["p"] = LARGE
    with pytest.raises(TypeError, match="JSON"):
        session.programs.put("p", 2, metadata={"x": object()})
    with pytest.raises(ValueError, match="program name"):
        session.programs["a/b"] = 1
    assert session.programs["p"] == 1
    assert files(store) == []


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_program_whose_file_is_damaged_is_not_read(session, store, damage):
    session.programs["p"] = LARGE
    (file,) = files(store)
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"y" * 100)
    with pytest.raises(ProgramDamaged, match="program 'p' is damaged: its"):
        session.programs["p"]
    session.programs["p"] = 2
    assert session.programs["p"] == 2


def test_global_programs_belong_to_no_session_and_live_for_a_time(session, store):
    shared = global_state(store)
    shared.programs.put("p", LARGE, ttl=60.0)
    assert "p" not in session.programs
    assert global_state(store).programs["p"] == LARGE
    with closing(sqlite3.connect(store.path)) as connection, connection:
        connection.execute("UPDATE programs SET expires = ?", (time.time() - 1,))
    assert list(shared.programs) == []
    with pytest.raises(ProgramNotFound):
        shared.programs["p"]
    store.sweep()
    assert sorted(summary.session.id for summary in store.sessions.all()) == ["s"]


def test_expired_global_programs_make_room_before_they_are_swept(store, monkeypatch):
    monkeypatch.setattr(program_service, "MAX_GLOBAL_PROGRAMS", 1)
    shared = global_state(store)
    shared.programs.put("old", 1, ttl=60.0)
    with closing(sqlite3.connect(store.path)) as connection, connection:
        connection.execute("UPDATE programs SET expires = ?", (time.time() - 1,))
    shared.programs["new"] = 2
    assert list(shared.programs) == ["new"]


def test_a_sweep_removes_files_that_nothing_names_and_no_other(session, store, monkeypatch):
    session.programs["p"] = LARGE
    (kept,) = files(store)
    (kept.parent / uuid.uuid4().hex).write_bytes(b"")
    store.sweep()
    assert len(files(store)) == 2, "a young file may belong to a row that is still to come"
    for file in files(store):
        os.utime(file, (1, 1))
    store.sweep()
    assert files(store) == [kept]


def test_a_file_that_is_being_copied_is_safe_from_a_sweep(session, store, monkeypatch):
    session.programs["p"] = LARGE
    os.utime(files(store)[0], (1, 1))
    write = store._database.write
    monkeypatch.setattr(
        store._database, "write", lambda *arguments: (store.sweep(), write(*arguments))[1]
    )
    copy = session.fork("copy")
    monkeypatch.undo()
    assert copy.programs["p"] == LARGE


def test_an_interrupt_when_a_program_is_stored_already_does_not_remove_its_file(
    session, store, monkeypatch
):
    session.programs["p"] = LARGE
    transaction = store._database.transaction

    def interrupted(work):
        transaction(work)
        raise KeyboardInterrupt

    monkeypatch.setattr(store._database, "transaction", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.programs["p"] = LARGE + b"new"
    monkeypatch.undo()
    assert session.programs["p"] == LARGE + b"new"
