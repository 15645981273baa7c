"""Sessions: one for each name, for as long as they live."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from snakepit_kernel.errors import QuotaExceeded, SessionNotFound, ValueTooLarge
from snakepit_kernel.sessions import handle, state
from snakepit_kernel.sessions.state import SessionState, open_session, sessions_of
from snakepit_kernel.shells.manager import manager
from snakepit_kernel.store.store import open_store


def age(store, seconds: float) -> None:
    """Let time pass for the sessions of a store, as the store sees it."""
    with closing(sqlite3.connect(store.path)) as connection, connection:
        update = "UPDATE sessions SET used = used - ?, expires = expires - ?"
        connection.execute(update, (seconds, seconds))


def names(store) -> list[str]:
    return sorted(info.id for info in sessions_of(store))


# -- one for each name -------------------------------------------------------------------------


def test_50_threads_that_open_a_session_get_one(store):
    with ThreadPoolExecutor(50) as threads:
        opened = list(threads.map(lambda _: open_session("a", store=store), range(50)))
    assert len({session.number for session in opened}) == 1
    assert store.sessions.count() == 1


OPEN = """
import sys
from snakepit_kernel.sessions.state import open_session
print("ready", flush=True)
sys.stdin.readline()
for step in range(20):
    session = open_session(f"a{step}", store=sys.argv[1])
    print(session.number)
    if step % 5 == 4:
        try:
            session.delete()
        except LookupError:
            pass
        open_session(f"a{step}", store=sys.argv[1])
"""


def test_8_processes_that_open_sessions_get_one_for_each_name(store):
    pipe = subprocess.PIPE
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, str(store.path)], stdin=pipe, stdout=pipe, text=True
        )
        for _ in range(8)
    ]
    for opener in openers:
        assert opener.stdout.readline() == "ready\n"
    for opener in openers:
        opener.stdin.write("\n")
        opener.stdin.flush()
    numbers = [opener.communicate()[0].split() for opener in openers]
    assert [opener.returncode for opener in openers] == [0] * 8
    for step in range(20):
        if step % 5 != 4:
            assert len({of_one[step] for of_one in numbers}) == 1
    assert Counter(names(store)) == Counter(f"a{step}" for step in range(20))
    assert store.sessions.count() == 20


def test_two_sessions_never_see_each_other(store):
    one, two = open_session("one", store=store), open_session("two", store=store)
    made = one.variables.register("v", "string", "mine")
    one.programs["p"] = one.metadata["m"] = "mine"
    assert (dict(two.variables), dict(two.programs), dict(two.metadata)) == ({}, {}, {})
    assert made.id not in two.variables
    assert two.variables.delete("v", made.id) == []
    two.variables.register("v", "integer", 1)
    two.variables["v"] = 2
    one.delete()
    assert dict(two.variables) == {"v": 2}


def test_names_that_differ_by_case_are_two_sessions(store):
    assert open_session("A", store=store).number != open_session("a", store=store).number


@pytest.mark.parametrize("name", ["", "../x", "a b", "a\n", "a" * 65, 1, None])
def test_a_name_that_cannot_be_is_refused(store, name):
    with pytest.raises((TypeError, ValueError), match="session"):
        open_session(name, store=store)


def test_a_session_that_is_made_anew_has_nothing_of_the_old_one(store):
    old = open_session("a", store=store)
    old.variables.register("v", "integer", 1)
    old.programs["p"] = 1
    old.delete()
    new = open_session("a", store=store)
    assert new.number != old.number
    assert (dict(new.variables), dict(new.programs)) == ({}, {})
    with pytest.raises(SessionNotFound):
        old.delete()
    with pytest.raises(SessionNotFound):
        old.touch()
    assert names(store) == ["a"]


# -- time to live ------------------------------------------------------------------------------


def test_a_session_that_is_used_lives_on_and_one_that_is_not_ends(store):
    used, idle = (
        open_session("used", store=store, ttl=100),
        open_session("idle", store=store, ttl=100),
    )
    for _ in range(3):
        age(store, 60)
        used.refresh()
        used.touch()
    assert names(store) == ["used"]
    idle.refresh()
    with pytest.raises(SessionNotFound, match="'idle'"):
        idle.touch()
    with pytest.raises(SessionNotFound):
        idle.variables.register("v", "integer", 1)


def test_a_session_that_has_ended_is_made_anew_under_its_name(store):
    old = open_session("a", store=store, ttl=10)
    old.variables.register("v", "integer", 1)
    age(store, 20)
    new = open_session("a", store=store)
    assert new.number != old.number
    assert dict(new.variables) == {}
    assert store.sessions.count() == 1


def test_a_session_without_a_time_to_live_lives_for_ever(store):
    session = open_session("a", store=store, ttl=None)
    assert (session.ttl, session.expires) == (None, None)
    age(store, 10**9)
    store.sweep()
    assert names(store) == ["a"]
    assert open_session("b", store=store, ttl=float("inf")).ttl is None


def test_a_time_to_live_is_changed_by_who_names_one_and_only_then(store):
    first = open_session("a", store=store, ttl=100)
    assert open_session("a", store=store).ttl == 100
    assert open_session("a", store=store, ttl=None).ttl is None
    changed = open_session("a", store=store, ttl=50)
    assert changed.ttl == 50
    assert changed.expires.timestamp() == pytest.approx(time.time() + 50, abs=5)
    first.refresh()
    first.touch()
    assert first.ttl == 50


def test_who_holds_a_session_learns_of_its_new_time_to_live_and_keeps_it_alive(store):
    holder = open_session("a", store=store, ttl=None)
    open_session("a", store=store, ttl=100)
    for _ in range(3):
        age(store, 60)
        holder.refresh()
        holder.touch()
    assert names(store) == ["a"]


def test_what_nobody_said_is_an_hour_in_a_script(store):
    assert open_session("a", store=store).ttl == 3600


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), "soon", True, [1]])
def test_a_time_to_live_that_cannot_be_is_refused(store, ttl):
    with pytest.raises((TypeError, ValueError), match="ttl"):
        open_session("a", store=store, ttl=ttl)
    assert names(store) == []


def test_a_sweep_deletes_what_has_ended_with_everything_in_it(store, monkeypatch):
    monkeypatch.setattr("snakepit_kernel.store.session_table.SWEEP_BATCH", 3)
    for number in range(10):
        session = open_session(f"s{number}", store=store, ttl=10)
        session.variables.register("v", "integer", 1)
        session.metadata["m"] = 1
    open_session("kept", store=store, ttl=100)
    age(store, 20)
    swept = store.sweep()
    assert sorted(row.id for row in swept) == sorted(f"s{number}" for number in range(10))
    assert names(store) == ["kept"]
    assert store.sessions.count() == 1
    assert store.check() == []
    with closing(sqlite3.connect(store.path)) as connection:
        for table in ("variables", "metadata", "programs"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


# -- quota -------------------------------------------------------------------------------------


def test_there_may_be_only_so_many_but_those_that_are_there_can_be_opened(store, monkeypatch):
    monkeypatch.setattr(state, "MAX_SESSIONS", 2)
    open_session("a", store=store)
    open_session("b", store=store, ttl=10)
    with pytest.raises(QuotaExceeded, match="2"):
        open_session("c", store=store)
    assert open_session("a", store=store).id == "a"
    with pytest.raises(QuotaExceeded):
        open_session("a", store=store).fork("copy")
    age(store, 20)  # b has ended, though nobody has swept it
    assert open_session("c", store=store).id == "c"
    assert names(store) == ["a", "c"]
    assert store.sessions.count() == 2


def test_threads_do_not_pass_the_quota_together(store, monkeypatch):
    monkeypatch.setattr(state, "MAX_SESSIONS", 5)

    def work(number: int) -> bool:
        try:
            return bool(open_session(f"s{number}", store=store))
        except QuotaExceeded:
            return False

    with ThreadPoolExecutor(20) as threads:
        assert sum(threads.map(work, range(20))) == 5
    assert len(names(store)) == 5


# -- copies and numbers ------------------------------------------------------------------------


def test_a_fork_begins_as_a_copy_and_goes_its_own_way(session, store):
    session.variables.register("v", "integer", 1, max=9, description="d")
    session.variables["v"] = 2
    session.variables.lock("v")
    session.programs["large"] = b"x" * 300_000
    session.metadata["m"] = 1
    copy = session.fork("copy")
    info = copy.variables.info("v")
    assert (info.value, info.version, info.constraints, info.locked) == (2, 2, {"max": 9}, None)
    assert len(copy.variables.history("v")) == 1
    copy.variables["v"] = 3
    session.programs["large"] = 1
    session.delete()
    assert (copy.variables["v"], len(copy.programs["large"])) == (3, 300_000)
    assert dict(copy.metadata) == {"m": 1}
    with pytest.raises(ValueError, match="already"):
        copy.fork("copy")


def test_a_fork_whose_name_is_taken_changes_nothing(session, store):
    open_session("taken", store=store).variables.register("v", "integer", 1)
    session.variables.register("w", "integer", 1)
    with pytest.raises(ValueError, match="there is a session 'taken' already"):
        session.fork("taken")
    assert dict(open_session("taken", store=store).variables) == {"v": 1}


def test_statistics_tell_what_a_session_has_become(session):
    session.variables.register_many({"a": ("integer", 1), "b": ("string", "x" * 100)})
    session.variables["a"] = 2
    session.programs["p"] = b"y" * 50
    before = session.stats().reads
    for _ in range(3):
        session.variables["b"]
    stats = session.stats()
    assert (stats.variables, stats.programs, stats.updates) == (2, 1, 1)
    assert stats.types == {"integer": 1, "string": 1}
    assert stats.variable_bytes > 100
    assert stats.program_bytes > 50
    assert (stats.registered_last_hour, stats.registered_last_day) == (2, 2)
    assert stats.reads == before + 3
    assert stats.most_read[0] == ("b", 3)


def test_sessions_are_listed_with_what_they_have_the_last_used_first(store):
    open_session("a", store=store).variables.register("v", "integer", 1)
    open_session("b", store=store, ttl=None)
    listed = sessions_of(store)
    assert [info.id for info in listed] == ["b", "a"]
    assert [info.variables for info in listed] == [0, 1]
    assert listed[0].expires is None
    assert listed[1].size_bytes > 0


def test_a_value_may_take_a_mebibyte_and_not_more(session):
    session.variables.register("b", "bytes", b"")
    with pytest.raises(ValueTooLarge, match="variable 'b'"):
        session.variables["b"] = bytes(1 << 20)
    session.variables["b"] = bytes((1 << 20) - 1000)


def test_what_workers_may_not_ask_for_is_refused(session):
    for part, method in (("variables", "max_bytes"), ("metadata", "__init__"), ("programs", "x")):
        with pytest.raises(ValueError, match="no method"):
            session.serve("worker", part, method)
    assert (
        session.serve("w1", "variables", "register")("v", "integer", 1, constraints={}).source
        == "w1"
    )


def test_the_text_of_a_session_names_it(session):
    assert repr(session) == "<SessionState 's'>"
    assert isinstance(session, SessionState)
    assert handle.TOUCH_INTERVAL > 0


def test_a_store_is_named_by_a_path_or_a_url(tmp_path):
    with pytest.raises(ValueError, match="'postgresql' is not known"):
        open_store("postgresql://host/db")
    with pytest.raises(TypeError, match="must be a path"):
        open_store(5)
    with pytest.raises(ValueError, match="not the path of a file"):
        open_store(tmp_path)


def test_the_state_of_a_shell_is_kept_although_a_process_begins_with_it_at_once(tmp_path):
    """A process takes a snapshot as well, before that of the idle shell is due."""
    session = open_session("s", store=tmp_path / "store.sqlite")
    try:
        session.shell.run("kept=by-the-session")
        session.processes.start("true").wait()

        until = time.monotonic() + 10
        while b"by-the-session" not in session.store.sessions.shell_state(session.number):
            assert time.monotonic() < until, "another process would not find it"
            time.sleep(0.01)
    finally:
        session.delete()
        manager.close()


def test_a_process_begins_with_the_last_state_also_while_that_is_being_kept(tmp_path):
    """The snapshot of the idle shell is taken 0.05 s after its last command."""
    session = open_session("s", store=tmp_path / "store.sqlite")
    functions = "; ".join(f"f{number}() {{ echo {number}; }}" for number in range(2000))
    try:
        session.shell.run(functions)  # so that it takes a while
        said = []
        for number in range(10):
            session.shell.run(f"said={number}")
            time.sleep(0.05 + number / 500)
            process = session.processes.start("echo $said")
            process.wait()
            said.append(process.logs().text)
    finally:
        session.delete()
        manager.close()

    assert said == [f"{number}\n" for number in range(10)]


def test_threads_that_open_a_shell_at_the_same_moment_have_the_same_one(tmp_path):
    session = open_session("s", store=tmp_path / "store.sqlite")
    threads = 8
    barrier = threading.Barrier(threads)

    def use(number: int) -> object:
        barrier.wait()
        if number % 2:
            session.processes.start("true").wait()
        return session.shell

    try:
        with ThreadPoolExecutor(threads) as executor:
            for _ in range(20):
                shells = set(executor.map(use, range(threads)))
                assert len(shells) == 1
                shells.pop().close()
    finally:
        session.delete()
        manager.close()
