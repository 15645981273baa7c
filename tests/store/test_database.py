"""The database file: what happens to it, and that nothing which was acknowledged is lost."""

from __future__ import annotations

import logging
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from snakepit_kernel.errors import SessionNotFound, StoreError
from snakepit_kernel.sessions.state import open_session
from snakepit_kernel.store import database as database_module
from snakepit_kernel.store.database import Database
from snakepit_kernel.store.recovery import inode_of, log_of
from snakepit_kernel.store.schema import VERSION
from snakepit_kernel.store.store import Store, open_store

ADD = "INSERT INTO totals (name, count) VALUES (?, 0)"
NAMES = "SELECT name FROM totals WHERE name <> 'sessions' ORDER BY name"


def names(database: Database) -> list[str]:
    return [name for (name,) in database.read(NAMES)]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [item.getMessage() for item in caplog.records if item.levelno >= logging.WARNING]


def backups(path: Path) -> list[Path]:
    found = path.parent.glob(f"{path.name}.corrupt-*")
    return [backup for backup in found if not backup.name.endswith(("-wal", "-shm"))]


def fill(path: Path, count: int = 400) -> list[str]:
    """Write sessions with a variable each into several pages of the file; return their names."""
    store = open_store(path)
    written = [f"s{number:03}" for number in range(count)]
    for name in written:
        open_session(name, store=store).variables.register("v", "string", name * 43)
    store.close()
    return written


# -- threads -----------------------------------------------------------------------------------


def test_threads_that_read_and_write_at_once_lose_nothing(database):
    def work(number: int) -> int:
        for step in range(20):
            database.write(ADD, (f"{number}-{step}",))
            database.read(NAMES)
        return number

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(work, range(8))) == [*range(8)]

    assert len(names(database)) == 160


def test_connections_of_many_threads_are_not_kept_for_ever(database):
    together = threading.Barrier(40)

    def read(_: int) -> None:
        select = "SELECT 1 FROM totals"
        pages = database.read_paged(select, ())
        next(pages)
        together.wait(20)
        pages.close()

    with ThreadPoolExecutor(40) as threads:
        list(threads.map(read, range(40)))

    assert 1 <= len(database._all) <= database_module.MAX_IDLE
    assert len(database._idle) == len(database._all)


def test_a_block_that_raises_changes_nothing(database):
    def work(connection: sqlite3.Connection) -> None:
        connection.execute(ADD, ("a",))
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        database.transaction(work)

    assert names(database) == []


def test_a_closed_database_says_so_and_can_be_opened_anew(path):
    store = open_store(path)
    open_session("a", store=store)
    store.close()

    with pytest.raises(StoreError, match="it was closed"):
        open_session("a", store=store)

    again = open_store(path)
    assert [row.session.id for row in again.sessions.all()] == ["a"]
    again.close()


def test_a_store_that_is_opened_twice_is_one(path):
    store = open_store(path)
    assert open_store(f"sqlite:///{path}") is store
    store.close()


# -- forks -------------------------------------------------------------------------------------


def in_child(work) -> str:
    """Run a function in a forked child; return what it returned."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, str(work()).encode())
        except BaseException as error:  # nothing of pytest may run in the child
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        text = file.read().decode()
    os.waitpid(child, 0)
    return text


def test_a_forked_child_reads_and_writes_beside_its_parent(database):
    database.write(ADD, ("parent",))

    def work() -> list[str]:
        database.write(ADD, ("child",))
        return names(database)

    assert in_child(work) == "['child', 'parent']"
    database.write(ADD, ("parent again",))
    assert names(database) == ["child", "parent", "parent again"]


def test_what_a_forked_child_writes_survives_that_its_parent_and_others_close_the_file(
    database, start
):
    """The last one to close the file removes the log: the child must count."""
    database.write(ADD, ("parent",))
    to_child, from_child = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            database.write(ADD, ("before",))
            os.write(from_child[1], b"x")
            os.read(to_child[0], 1)
            database.write(ADD, ("after",))
        finally:
            os._exit(0)
    os.read(from_child[0], 1)
    database.close()
    other = start("database = Database(path)\ndatabase.read('SELECT 1')\ndatabase.close()")
    other.go()
    other.end()

    os.write(to_child[1], b"x")
    os.waitpid(child, 0)

    for end in (*to_child, *from_child):
        os.close(end)
    again = Database(database.path)
    assert names(again) == ["after", "before", "parent"]
    again.close()


def test_a_child_that_is_forked_while_another_thread_writes_waits_for_it(database):
    begun = threading.Event()

    def work(connection: sqlite3.Connection) -> None:
        connection.execute(ADD, ("slow",))
        begun.set()
        time.sleep(0.2)  # the fork shall come meanwhile; that it has cannot be seen from here

    writer = threading.Thread(target=database.transaction, args=(work,))
    writer.start()
    begun.wait()

    def write() -> list[str]:
        database.write(ADD, ("child",))
        return names(database)

    assert in_child(write) == "['child', 'slow']"
    writer.join()


def test_a_child_that_is_forked_while_another_thread_does_not_end_says_so(database, monkeypatch):
    monkeypatch.setattr(database_module, "FORK_PATIENCE", 0.05)
    begun, end = threading.Event(), threading.Event()

    def work(connection: sqlite3.Connection) -> None:
        connection.execute(ADD, ("slow",))
        begun.set()
        end.wait(10)

    writer = threading.Thread(target=database.transaction, args=(work,))
    writer.start()
    begun.wait()

    said = in_child(lambda: names(database))
    end.set()
    writer.join()

    assert "StoreError" in said
    assert "while this process was forked" in said
    assert names(database) == ["slow"]


def test_threads_that_fork_at_once_go_on(database):
    def work(number: int) -> str:
        database.write(ADD, (f"{number}",))
        return in_child(lambda: len(names(database)) > 0)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(8))) == ["True"] * 8
    assert len(names(database)) == 8


# -- several processes -------------------------------------------------------------------------


def test_processes_that_make_the_file_at_once_make_one(start, database):
    children = [
        start(f"Database(path).write({ADD!r}, (sys.argv[2],))", number) for number in range(6)
    ]
    for child in children:
        child.go()

    assert [child.end() for child in children] == [("", "")] * 6
    assert names(database) == [str(number) for number in range(6)]


def test_processes_that_find_a_damaged_file_at_once_keep_it_once_and_lose_no_write(
    path, start, database
):
    path.write_bytes(b"garbage" * 1000)
    children = [
        start(f"Database(path).write({ADD!r}, (sys.argv[2],))", number) for number in range(6)
    ]
    for child in children:
        child.go()

    logged = "".join(child.end()[1] for child in children)

    assert names(database) == [str(number) for number in range(6)]
    assert logged.count("was damaged") == 1
    assert len(backups(path)) == 1


# -- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["no database", "header only"])
def test_a_file_that_is_damaged_at_the_start_is_kept_with_one_warning(path, caplog, damage):
    fill(path)
    content = path.read_bytes()
    broken = b"garbage" * 1000 if damage == "no database" else content[:100] + b"\xff" * 9000
    path.write_bytes(broken)

    store = open_store(path)
    open_session("new", store=store).variables.register("v", "integer", 1)

    assert [row.session.id for row in store.sessions.all()] == ["new"]
    assert store.check() == []
    store.close()
    (backup,) = backups(path)
    assert backup.read_bytes() == broken
    (warning,) = warnings_in(caplog)
    assert str(backup) in warning


PAGE = 4096
GARBAGE = b"\xaa" * PAGE


def pages_of(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return [content[place : place + PAGE] for place in range(0, len(content), PAGE)]


def is_leaf(page: bytes) -> bool:
    """Whether it has rows of a table."""
    return page[0] == 13


def holds_values(page: bytes) -> bool:
    """Whether it has rows of the tables of variables or changes that `fill` has made."""
    return is_leaf(page) and re.search(rb"string|(s\d\d\d)\1{42}", page) is not None


def names_sessions(page: bytes) -> bool:
    """Whether it is one of the table of sessions that `fill` has made, or of the index of names."""
    return re.search(rb"s\d\d\d", page) is not None and not holds_values(page)


def count_rows(page: bytes) -> int:
    return int.from_bytes(page[3:5], "big")


def overwrite(path: Path, places: Iterable[int]) -> None:
    pages = pages_of(path)
    for place in places:
        pages[place] = GARBAGE
    path.write_bytes(b"".join(pages))


def find_damage(path: Path, written: list[str]) -> tuple[Store, dict[str, object]]:
    """Use all sessions, until the damage is found; return the values that are left."""
    store = open_store(path)
    open_session("new", store=store)
    for name in written:
        open_session(name, store=store).variables.list()
    left = {}
    for row in store.sessions.all():
        for variable in open_session(row.session.id, store=store).variables.list():
            left[row.session.id] = variable.value
    return store, left


@pytest.mark.parametrize("seed", range(12))
def test_rows_that_can_be_read_of_a_damaged_file_are_taken_over(path, caplog, seed):
    written = fill(path)
    pages = pages_of(path)
    choice = random.Random(seed)
    damaged = choice.sample(range(len(pages)), 4)
    # A name is in the table and in its index: without both, a session gets another one.
    while sum(names_sessions(pages[place]) for place in damaged) > 1:
        damaged = choice.sample(range(len(pages)), 4)
    overwrite(path, damaged)

    store, left = find_damage(path, written)

    assert store.check() == []
    kept = [row.session.id for row in store.sessions.all()]
    assert store.sessions.count() == len(kept)
    assert len(left) >= 400 - sum(
        count_rows(pages[place]) for place in damaged if holds_values(pages[place])
    )
    assert left == {name: name * 43 for name in left}
    assert len(kept) == 401  # those that could not be read were made anew
    for name in kept:
        session = open_session(name, store=store)
        session.variables.register("v", "string", "again")
        session.variables.set("v", "more")
        assert session.variables["v"] == "more"
    assert len(warnings_in(caplog)) == len(backups(path)) <= 1  # not each damage is ever met
    store.close()


def test_no_row_is_lost_with_the_pages_that_lead_to_it(path):
    written = fill(path)
    overwrite(path, [place for place, page in enumerate(pages_of(path)) if not is_leaf(page)])

    store, left = find_damage(path, written)

    assert left == {name: name * 43 for name in written}
    assert store.check() == []
    store.close()


@pytest.mark.parametrize("is_named", [True, False])
def test_values_whose_session_was_lost_are_found_in_one_that_is_made_anew(path, is_named):
    written = fill(path)
    lost = [
        place
        for place, page in enumerate(pages_of(path))
        if names_sessions(page) and (is_leaf(page) or not is_named)
    ]
    overwrite(path, lost)

    store, left = find_damage(path, written)

    assert sorted(left.values()) == [name * 43 for name in written]
    if is_named:
        assert sorted(left) == written
    else:
        assert all(name.startswith("recovered-") for name in left)
    assert store.check() == []
    store.close()


def test_what_was_deleted_does_not_come_back_from_a_damaged_file(path):
    written = fill(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in (
            "PRAGMA secure_delete = OFF",  # SQLite's default, and not every distribution's
            "PRAGMA foreign_keys = ON",
            "DELETE FROM sessions WHERE id >= 's020'",
            "DELETE FROM changes WHERE session NOT IN (SELECT number FROM sessions)",
        ):
            connection.execute(statement)
        select = "SELECT rootpage FROM sqlite_master WHERE name IN ('sessions', 'changes')"
        roots = [root - 1 for (root,) in connection.execute(select)]
    assert sum(holds_values(page) for page in pages_of(path)) > 10  # what was deleted still stands
    overwrite(path, roots)

    store, left = find_damage(path, written[:20])

    assert set(left) <= set(written[:20])
    assert {row.session.id for row in store.sessions.all()} == {"new", *written[:20]}
    store.close()


def test_rows_that_are_only_in_the_log_of_a_damaged_file_are_taken_over_too(path, start):
    written = fill(path)
    child = start("""
    open_session("last", store=path).variables.register("v", "string", "in the log")
    print("written", flush=True)
    sys.stdin.readline()
    """)
    child.go()
    assert child.line() == "written"
    overwrite(path, range(1, 19))  # all roots

    store, left = find_damage(path, written)

    assert left["last"] == "in the log"
    assert len(left) == 401
    child.go()
    child.end()
    store.close()


@pytest.mark.parametrize("first", ["read", "write"])
def test_pages_that_are_overwritten_while_the_file_is_open_cost_one_warning(path, caplog, first):
    written = fill(path)
    store = open_store(path)
    session = open_session(written[0], store=store)
    with open(path, "r+b") as file:
        size = file.seek(0, 2)
        file.seek(4096)
        file.write(b"\xaa" * (size - 4096))

    def use() -> None:
        if first == "read":
            session.variables.list()
        else:
            session.variables.register("other", "integer", 1)

    with pytest.raises(SessionNotFound):  # it could not be rescued
        use()
    open_session("new", store=store).variables.register("v", "integer", 1)

    assert [row.session.id for row in store.sessions.all()] == ["new"]
    assert store.check() == []
    assert len(warnings_in(caplog)) == len(backups(path)) == 1
    store.close()


def test_what_others_have_open_of_a_file_that_was_replaced_is_not_used_any_more(path, start):
    fill(path, 3)
    code = """
    store = open_store(path)
    session = open_session("s000", store=store)
    print(session.variables["v"][:4], flush=True)
    sys.stdin.readline()
    open_session("mine", store=store)
    print(sorted(row.session.id for row in store.sessions.all()))
    """
    child = start(code)
    child.go()
    assert child.line() == "s000"
    path.write_bytes(b"garbage" * 1000)
    store = open_store(path)
    open_session("new", store=store)

    child.go()

    assert child.end()[0] == "['mine', 'new']\n"
    assert sorted(row.session.id for row in store.sessions.all()) == ["mine", "new"]
    store.close()


NO_ROOM = """
import resource, sys
from snakepit_kernel.errors import StoreError
from snakepit_kernel.sessions.state import open_session
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
try:
    for number in range(400):
        open_session(f"s{number:03}", store=sys.argv[1]).variables.list()
except StoreError as error:
    print(error)
"""


def test_a_damaged_file_that_the_disk_has_no_room_to_rescue_stays_where_it_is(path):
    """A limit of the file size stands for the full disk: no write beyond it succeeds."""
    fill(path)
    content = bytearray(path.read_bytes())
    content[20 * 4096 : 21 * 4096] = b"\xaa" * 4096
    path.write_bytes(content)

    done = subprocess.run(
        [sys.executable, "-c", NO_ROOM, path], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("the store of sessions ")
    assert path.read_bytes() == content
    assert backups(path) == []


# -- a file that goes away ---------------------------------------------------------------------


def remove_with_log(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()


@pytest.mark.parametrize("remove", [remove_with_log, Path.unlink])
def test_a_file_that_was_removed_is_made_anew_and_no_write_is_lost_in_the_old_one(
    database, path, start, remove
):
    database.write(ADD, ("old",))
    child = start(f"""
        database = Database(path)
        database.read("SELECT 1")
        print("open", flush=True)
        sys.stdin.readline()
        database.write({ADD!r}, ("theirs",))
        print(len(database.read({NAMES!r})))
    """)
    child.go()
    assert child.line() == "open"

    remove(path)
    database.write(ADD, ("ours",))
    child.go()

    assert child.end() == ("2\n", "")
    database.write(ADD, ("ours again",))
    with closing(sqlite3.connect(path)) as connection:
        found = [name for (name,) in connection.execute(NAMES)]
    assert found == ["ours", "ours again", "theirs"]
    assert database.check() == []


def test_the_log_of_a_new_file_stays_though_it_has_the_number_of_the_old_ones(
    database, path, start
):
    database.write(ADD, ("old",))
    seen = database._seen
    database.close_idle()
    path.unlink()
    child = start(f"""
        database = Database(path)
        database.write({ADD!r}, ("theirs",))
        print("open", flush=True)
        sys.stdin.readline()
    """)
    child.go()
    assert child.line() == "open"
    # File systems give the number of a file that is gone to one that is new, sooner or later.
    database._seen = seen._replace(log=inode_of(log_of(path)))

    database.write(ADD, ("ours",))

    assert names(database) == ["ours", "theirs"]
    child.go()
    child.end()


def test_a_file_that_was_replaced_by_a_copy_is_used_from_then_on(database, path):
    database.write(ADD, ("kept",))
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(f"{path}.copy")) as copy:
        source.backup(copy)
    database.write(ADD, ("not in the copy",))

    Path(f"{path}.copy").replace(path)
    database.write(ADD, ("new",))

    assert names(database) == ["kept", "new"]
    assert database.check() == []


def test_one_who_only_reads_sees_soon_that_the_file_was_replaced(database, path, monkeypatch):
    monkeypatch.setattr(database_module, "REFRESH_INTERVAL", 0.0)
    database.write(ADD, ("old",))
    database.read(NAMES)
    remove_with_log(path)

    assert names(database) == []


def test_a_write_into_a_file_that_is_replaced_in_that_moment_is_not_acknowledged(database, path):
    def work(connection: sqlite3.Connection) -> None:
        connection.execute(ADD, ("lost",))
        remove_with_log(path)

    with pytest.raises(StoreError, match="replaced in this very moment"):
        database.transaction(work)

    database.write(ADD, ("kept",))
    assert names(database) == ["kept"]


def test_a_session_of_a_file_that_was_removed_is_not_found_in_the_new_one(path):
    """Numbers that began at 1 again would give it the variables of another session."""
    store = open_store(path)
    old = open_session("old", store=store)
    old.variables.register("v", "integer", 1)
    remove_with_log(path)
    new = open_session("new", store=store)

    with pytest.raises(SessionNotFound):
        old.variables.register("w", "integer", 2)
    with pytest.raises(SessionNotFound):
        old.variables["v"] = 3

    assert list(new.variables) == []
    store.close()


# -- a disk that is full, and other obstacles --------------------------------------------------

FULL_DISK = """
import resource
store = open_store(path)
session = open_session("a", store=store)
session.variables.register("v", "string", "first")
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
last, error = "first", None
for number in range(100):
    text = f"{number}" * 10_000
    try:
        session.variables["v"] = text
        last = text
    except Exception as raised:
        error = raised
        break
print(type(error).__name__, "nothing was changed" in str(error) or "disk" in str(error))
print(session.variables["v"] == last, last != "first")
try:
    session.programs["p"] = b"x" * 1_000_000
except Exception as raised:
    print(type(raised).__name__)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
session.variables["v"] = "room"
print(session.variables["v"], store.check(), os.listdir(f"{path}-programs"))
"""


def test_a_full_disk_is_named_and_what_was_there_is_there(start):
    """A limit of the file size stands for the full disk: no write beyond it succeeds."""
    child = start(FULL_DISK)
    child.go()
    out, logged = child.end()
    assert out.splitlines() == [
        "StoreError True",
        "True True",
        "StoreError",
        "room [] []",
    ], logged


SMALL_DISKS = """
import subprocess, sys
from pathlib import Path
from snakepit_kernel.errors import StoreError
from snakepit_kernel.sessions.state import open_session
from snakepit_kernel.store.store import open_store
place = Path(sys.argv[1])
for size in range(4, 260, 8):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", place], check=True)
    store = open_store(place / "sessions.sqlite")
    try:
        open_session("a", store=store).variables.register("v", "string", "x" * 20_000)
        print("set")
    except StoreError as error:
        print(error.problem)
    store.close()
    assert not list(place.glob("*corrupt*"))
    subprocess.run(["umount", place], check=True)
"""


def can_mount() -> bool:
    """Whether small disks can be mounted here, which in a chroot they cannot."""
    if os.geteuid() != 0:
        return False
    return subprocess.run(["unshare", "-m", "true"], stderr=-3, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="this machine lets us mount nothing")
def test_a_new_store_on_a_disk_that_is_full_at_any_moment_says_so(tmp_path):
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", SMALL_DISKS, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stderr == ""
    said = done.stdout.split("\n")
    assert {*said} == {"", "set", "the disk is full; nothing was changed"}
    assert said.count("set") > 5


def test_a_database_that_may_not_grow_keeps_what_it_has(path, monkeypatch):
    store = open_store(path)
    session = open_session("a", store=store)
    session.variables.register("v", "string", "first")
    store._database.transaction(lambda connection: None)
    (connection,) = store._database._idle
    connection.execute("PRAGMA max_page_count = 40")

    with pytest.raises(StoreError, match="the disk is full; nothing was changed"):
        session.variables["v"] = "x" * 900_000

    assert session.variables["v"] == "first"
    assert session.variables.info("v").version == 1
    assert store.check() == []
    store.close()


def test_a_file_of_a_newer_version_of_the_same_kind_is_used_as_it_is(path):
    fill(path, 2)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 7}")

    store = open_store(path)
    assert open_session("s000", store=store).variables["v"] == "s000" * 43
    store.close()

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION + 7,)


def test_a_file_of_the_next_kind_is_left_alone_with_a_clear_error(path):
    fill(path, 2)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1000}")
    content = path.read_bytes()

    store = open_store(path)
    with pytest.raises(StoreError, match="newer version of snakepit_kernel; upgrade"):
        open_session("s000", store=store)
    store.close()

    assert path.read_bytes() == content


@pytest.mark.parametrize("obstacle", ["a file in place of the directory", "a directory as file"])
def test_a_place_that_cannot_be_written_is_named(path, obstacle):
    if obstacle == "a directory as file":
        path.mkdir()
        database = Database(path)
        with pytest.raises(StoreError, match=str(path)):
            database.write(ADD, ("a",))
        return
    path.touch()
    with pytest.raises(StoreError, match="see that the directory exists"):
        open_session("a", store=path / "below" / "sessions.sqlite")


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_directory_that_may_not_be_written_or_entered_is_named(mode):
    nobody = 65534
    if os.getuid() != 0:
        pytest.skip("needs root, to become somebody else")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # which everybody may enter
        path = Path(folder) / "sessions.sqlite"
        fill(path, 1)
        path.chmod(0o644)
        Path(folder).chmod(mode)
        code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from snakepit_kernel.sessions.state import open_session
from snakepit_kernel.errors import StoreError
os.setresuid({nobody}, {nobody}, {nobody})
os.listdir("/")
try:
    open_session("b", store={str(path)!r})
except StoreError as error:
    print("StoreError", error)
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.stdout.startswith(f"StoreError the store of sessions {path}"), done.stderr


def test_a_writer_that_does_not_end_is_told_of(database, path, monkeypatch):
    monkeypatch.setattr(database_module, "BUSY_PATIENCE", 0.1)
    database.write(ADD, ("a",))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="other processes wrote to it"):
            database.write(ADD, ("b",))
        with pytest.raises(StoreError, match="other processes wrote to it"):
            database.transaction(lambda connection: connection.execute(ADD, ("c",)))
        assert names(database) == ["a"]
    database.write(ADD, ("d",))
    assert names(database) == ["a", "d"]


# -- Ctrl-C ------------------------------------------------------------------------------------


# A finalizer, or the callback of a weak reference, that it hits is none of ours.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_moment_leaves_no_transaction_open_and_loses_no_write(path, caplog):
    store = open_store(path)
    session = open_session("a", store=store)
    session.variables.register("n", "integer", 0)
    session.variables.register("m", "integer", 0)
    pause = random.Random(7)
    stop = threading.Event()
    main = threading.main_thread().ident
    armed = threading.Event()

    def interrupt() -> None:
        while not stop.is_set():
            armed.wait(0.5)  # one that a finalizer has swallowed is followed by another
            time.sleep(pause.uniform(0, 0.002))  # the moment is what matters
            if is_working:
                armed.clear()
                signal.pthread_kill(main, signal.SIGINT)

    is_working: list[bool] = []
    thread = threading.Thread(target=interrupt)
    thread.start()
    interrupts, acknowledged, kept = 0, 0, []
    deadline = time.monotonic() + 20
    try:
        while interrupts < 400 and time.monotonic() < deadline:
            try:
                is_working.append(True)
                armed.set()
                while True:
                    session.variables["n"] = acknowledged + 1
                    acknowledged += 1
                    session.variables.set_many({"n": acknowledged + 1, "m": acknowledged + 1})
                    acknowledged += 1
                    session.programs["p"] = acknowledged
            except KeyboardInterrupt as error:
                is_working.clear()
                interrupts += 1
                kept.append(error)  # with its frames, as a notebook keeps the last one
                with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
                    other.execute("BEGIN IMMEDIATE")  # nobody holds the lock
                    other.execute("ROLLBACK")
                found = session.variables["n"]
                assert acknowledged <= found <= acknowledged + 2
                acknowledged = found
    finally:
        stop.set()
        thread.join()
    assert interrupts > 100
    assert not any(connection.in_transaction for connection in store._database._all)
    assert store.check() == []
    kept.clear()
    store.close()
