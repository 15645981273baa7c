"""Files of ours: private whatever the umask, and never somebody else's."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from snakepit_kernel import files
from snakepit_kernel.cli.leftover_checks import _stale_connection_files
from snakepit_kernel.cli.wrap import read_spec
from snakepit_kernel.errors import ProgramDamaged, StoreError
from snakepit_kernel.files import NotOurs, check_file, create_file, open_file, write_file
from snakepit_kernel.pool.monitoring.published_pools import UnreadablePool, read_pool
from snakepit_kernel.pool.monitoring.timeline import Timeline
from snakepit_kernel.pool.status import status_path
from snakepit_kernel.processes import logs
from snakepit_kernel.processes.end_report import EndReport
from snakepit_kernel.processes.run_registry import Registry
from snakepit_kernel.sessions.exports import export_session, import_session
from snakepit_kernel.sessions.state import open_session
from snakepit_kernel.store.program_table import FILE_FROM_BYTES
from snakepit_kernel.store.store import open_store
from snakepit_kernel.transport import Reached, reached

OTHER = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def open_umask() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


def link_to(path: Path) -> None:
    (path.parent / "behind").write_text("kept")
    path.symlink_to(path.parent / "behind")


def hard_link_to(path: Path) -> None:
    (path.parent / "behind").write_text("kept")
    path.hardlink_to(path.parent / "behind")


def foreign(path: Path) -> None:
    path.write_text("kept")
    os.chown(path, OTHER, OTHER)


PLANTS = [
    pytest.param(link_to, "is a link", id="link"),
    pytest.param(hard_link_to, "another name", id="hard link"),
    pytest.param(os.mkfifo, "no regular file", id="pipe"),
    pytest.param(foreign, "must belong to you", id="another user's", marks=as_root),
]
Plant = Callable[[Path], object]


@pytest.mark.parametrize(("plant", "problem"), PLANTS)
def test_what_may_be_somebody_elses_is_refused_by_name_and_left_as_it_is(tmp_path, plant, problem):
    path = tmp_path / "file"
    plant(path)
    before = path.lstat()

    for use in (
        lambda: check_file(path),
        lambda: create_file(path),
        lambda: open_file(path, os.O_RDONLY),
        lambda: open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    ):
        with pytest.raises(NotOurs, match=problem) as caught:
            use()
        assert str(path) in str(caught.value)

    after = path.lstat()
    assert (after.st_mode, after.st_size, after.st_uid) == (
        before.st_mode,
        before.st_size,
        before.st_uid,
    )


@pytest.mark.usefixtures("open_umask")
def test_files_are_private_whatever_the_umask_and_older_ones_become_so(tmp_path):
    made, created, old = tmp_path / "made", tmp_path / "created", tmp_path / "old"
    os.close(open_file(made, os.O_WRONLY | os.O_CREAT))
    create_file(created)
    old.touch()
    assert check_file(old)
    assert [mode_of(path) for path in (made, created, old)] == [0o600] * 3


# -- the files that there are ----------------------------------------------------------------------


@pytest.mark.usefixtures("open_umask")
def test_databases_and_all_that_belongs_to_them_are_private(tmp_path):
    store = open_store(tmp_path / "new" / "sessions.sqlite")
    session = open_session("s", store=store)
    session.programs.put("large", b"x" * FILE_FROM_BYTES)
    registry = Registry(tmp_path / "new" / "runs.sqlite")
    registry.reserve("a" * 13, label="R")
    with closing(sqlite3.connect(registry.path)) as connection:
        connection.execute("SELECT count(*) FROM runs").fetchall()
        found = {path: mode_of(path) for path in (tmp_path / "new").rglob("*")}
    store.close()

    names = {path.name for path in found}
    assert names >= {
        f"{base}.sqlite{end}"
        for base in ("sessions", "runs")
        for end in ("", "-wal", "-shm", ".lock")
    }
    assert mode_of(tmp_path / "new") == 0o700
    directories = {path for path in found if path.is_dir()}
    assert {found[path] for path in directories} == {0o700}
    assert {mode for path, mode in found.items() if path not in directories} == {0o600}


@pytest.mark.usefixtures("open_umask")
def test_sockets_logs_and_what_a_pool_publishes_are_private(tmp_path):
    code = """
import os, time
from pathlib import Path
from snakepit_kernel import Pool
os.umask(0)
with Pool(1) as pool:
    pool.run("1")
    folder = next(Path(os.environ["SNAKEPIT_RUNTIME_DIR"]).glob("*/default-*"))
    while not (folder / "pool.json").exists():
        time.sleep(0.05)
    for path in (folder, *folder.iterdir()):
        print(path.name.partition("-")[0], path.is_dir(), path.lstat().st_mode & 0o777)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    found = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, *_ in found} == {
        *("default", "1.1", "1.1.json", "1.1.log", "owner", "pool.json", "commands"),
    }
    assert all(int(mode) == (0o700 if is_dir == "True" else 0o600) for _, is_dir, mode in found)


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal", ".lock"])
@pytest.mark.parametrize(("plant", "problem"), PLANTS)
def test_a_planted_file_of_a_database_is_refused_with_the_remedy(
    tmp_path, caplog, suffix, plant, problem
):
    for base in ("sessions.sqlite", "runs.sqlite"):
        place = tmp_path / base
        place.mkdir()
        if suffix:
            (place / base).touch()
        plant(place / f"{base}{suffix}")

    registry = Registry(tmp_path / "runs.sqlite" / "runs.sqlite")
    registry.reserve("a" * 13, label="R")
    with pytest.raises(StoreError, match=problem) as caught:
        open_session("s", store=tmp_path / "sessions.sqlite" / "sessions.sqlite")

    assert f"sessions.sqlite{suffix} " in str(caught.value)
    assert "remove it" in str(caught.value) or "removed" in str(caught.value)
    assert f"runs.sqlite{suffix} " in caplog.text
    assert problem in caplog.text
    for behind in tmp_path.rglob("behind"):
        assert behind.read_text() == "kept"
    assert not list(tmp_path.rglob("*corrupt*"))


@as_root
def test_a_database_that_another_user_planted_is_not_obeyed(tmp_path):
    """The chain that was: a directory that was open, a database in it, a row that names a file."""
    planted = Registry(tmp_path / "runs.sqlite")
    planted.reserve("a" * 13, label="planted")
    for path in tmp_path.iterdir():
        os.chown(path, OTHER, OTHER)
    assert Registry(planted.path).runs() == []


# -- programs --------------------------------------------------------------------------------------


def set_file(path: Path, name: object) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE programs SET file = ?", (name,))


@pytest.mark.parametrize("kind", ["absolute", "above", "other name"])
def test_the_row_of_a_program_is_not_obeyed_as_a_path(tmp_path, kind):
    victim = tmp_path / "victim"
    value = b"x" * FILE_FROM_BYTES
    store = open_store(tmp_path / "sessions.sqlite")
    session = open_session("s", store=store)
    session.programs.put("p", value)
    folder = tmp_path / "sessions.sqlite-programs"
    (file,) = folder.iterdir()
    victim.write_bytes(file.read_bytes())  # even with the very content
    (folder / "other").write_bytes(file.read_bytes())
    set_file(
        tmp_path / "sessions.sqlite",
        {"absolute": str(victim), "above": "../victim", "other name": "other"}[kind],
    )

    with pytest.raises(ProgramDamaged, match="names no file of a program"):
        session.programs["p"]
    session.fork("copy")
    del session.programs["p"]

    assert victim.exists()
    assert (folder / "other").exists()
    store.close()


def test_the_file_of_a_program_that_became_a_link_is_not_read(tmp_path):
    store = open_store(tmp_path / "sessions.sqlite")
    session = open_session("s", store=store)
    session.programs.put("p", b"x" * FILE_FROM_BYTES)
    (file,) = (tmp_path / "sessions.sqlite-programs").iterdir()
    file.rename(tmp_path / "moved")
    file.symlink_to(tmp_path / "moved")

    with pytest.raises(StoreError, match="is a link"):
        session.programs["p"]
    store.close()


def test_nothing_is_removed_behind_a_link_in_the_place_of_the_folder_of_programs(tmp_path):
    store = open_store(tmp_path / "sessions.sqlite")
    session = open_session("s", store=store)
    session.programs.put("p", b"x" * FILE_FROM_BYTES)
    folder = tmp_path / "sessions.sqlite-programs"
    (file,) = folder.iterdir()
    folder.rename(tmp_path / "behind")
    folder.symlink_to(tmp_path / "behind")
    old = [tmp_path / "behind" / name for name in ("mine", "0" * 32)]
    for path in old:
        path.write_text("kept")
        os.utime(path, (1, 1))

    store.sweep()
    del session.programs["p"]

    assert all(path.exists() for path in (*old, tmp_path / "behind" / file.name))
    store.close()


def test_only_files_of_programs_are_removed_from_their_folder(tmp_path):
    store = open_store(tmp_path / "sessions.sqlite")
    open_session("s", store=store).programs.put("p", b"x" * FILE_FROM_BYTES)
    folder = tmp_path / "sessions.sqlite-programs"
    (folder / ("0" * 32)).mkdir()
    (folder / "notes").write_text("mine")
    (folder / ("1" * 32)).symlink_to(tmp_path)
    (folder / ("2" * 32)).write_text("an orphan")
    for path in folder.iterdir():
        os.utime(path, (1, 1), follow_symlinks=False)

    store.sweep()

    left = {path.name for path in folder.iterdir()}
    assert {"0" * 32, "1" * 32, "notes"} < left
    assert "2" * 32 not in left
    store.close()


# -- files that are written out --------------------------------------------------------------------


@pytest.mark.usefixtures("open_umask")
@pytest.mark.parametrize("mode", [None, 0o600, 0o640, 0o400])
def test_what_is_written_out_is_private_or_keeps_the_rights_of_what_was_there(tmp_path, mode):
    path = tmp_path / "file"
    if mode is not None:
        path.touch()
        path.chmod(mode)

    write_file(path, "text")

    assert path.read_text() == "text"
    assert mode_of(path) == (0o600 if mode is None else mode)
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_the_place_of_what_is_written_out_is_replaced(tmp_path):
    path = tmp_path / "file"
    link_to(path)
    write_file(path, "text")
    assert (tmp_path / "behind").read_text() == "kept"
    assert (path.is_symlink(), path.read_text(), mode_of(path)) == (False, "text", 0o600)


def test_a_pipe_in_the_place_of_what_is_written_out_is_written_to(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE, text=True) as reader:
        write_file(path, "text")
        assert reader.communicate()[0] == "text"
    assert stat.S_ISFIFO(path.lstat().st_mode)


@as_root
def test_what_another_user_put_in_the_place_of_what_is_written_out_gives_them_nothing(tmp_path):
    path = tmp_path / "file"
    foreign(path)
    path.chmod(0o666)

    write_file(path, "text")

    assert (mode_of(path), path.lstat().st_uid) == (0o600, os.geteuid())


@as_root
def test_the_pipe_of_another_user_is_not_written_to(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path, 0o666)
    os.chown(path, OTHER, OTHER)
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE, text=True) as reader:
        with pytest.raises(NotOurs, match="must belong to you"):
            write_file(path, "secret")
        assert reader.communicate()[0] == ""


@pytest.mark.usefixtures("alarm")
def test_a_pipe_that_nobody_reads_is_an_error_and_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "READER_PATIENCE", 0.1)
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(OSError, match="no process reads this pipe"):
        write_file(tmp_path / "pipe", "text")


@pytest.fixture
def alarm() -> Iterator[None]:
    """Let what waits for ever end."""

    def ring(*_: object) -> None:
        pytest.fail("it waits")  # no OSError, which might be caught

    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.mark.usefixtures("alarm")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(pipe := tmp_path / "kernel.json")
    os.mkfifo(tmp_path / "kernel-1.json")

    assert reached(pipe) is Reached.UNKNOWN
    assert _stale_connection_files(tmp_path, []) == []
    with pytest.raises(NotOurs, match="is no regular file"):
        logs.read_end(pipe, 100)
    with pytest.raises(ValueError, match="is broken: is no regular file"):
        read_spec(tmp_path)
    with (
        closing(open_store(tmp_path / "s.sqlite")) as store,
        pytest.raises(ValueError, match="is no exported session"),
    ):
        import_session(open_session("s", store=store), pipe)


def test_json_without_end_in_a_file_of_others_is_told_or_passed_over(tmp_path):
    path = tmp_path / "kernel.json"
    path.write_text("[" * 100_000)
    path.with_name("kernel-1.json").hardlink_to(path)
    folder = tmp_path / "run" / "pool"
    folder.mkdir(parents=True, mode=0o700)
    write_file(status_path(folder), path.read_text())

    assert reached(path) is Reached.UNKNOWN
    assert _stale_connection_files(tmp_path, []) == []
    with pytest.raises(ValueError, match="is broken: there are too many lists"):
        read_spec(tmp_path)
    with pytest.raises(UnreadablePool):
        read_pool(folder)
    assert EndReport.from_json(path.read_text()) == EndReport()
    assert EndReport.from_json('{"unknown":' + path.read_text()) == EndReport()


def test_a_file_is_imported_from_a_pipe_that_somebody_writes_to(tmp_path):
    with closing(open_store(tmp_path / "s.sqlite")) as store:
        session = open_session("s", store=store)
        session.metadata["a"] = 1
        export_session(session, tmp_path / "exported")
        os.mkfifo(pipe := tmp_path / "pipe")
        writer = [
            "sh",
            "-c",
            f"exec > {pipe}; echo ready >&2; sleep 0.3; cat {pipe.parent}/exported",
        ]
        with subprocess.Popen(writer, stderr=subprocess.PIPE) as process:
            reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # or it would wait to open it
            assert process.stderr is not None
            assert process.stderr.readline() == b"ready\n"
            other = open_session("other", store=store)
            assert import_session(other, pipe) == 1
            os.close(reader)
        assert dict(other.metadata) == {"a": 1}


def test_a_pool_does_not_wait_for_a_pipe_in_the_place_of_a_file_of_its_own(tmp_path):
    code = """
import os
from pathlib import Path
from snakepit_kernel import Pool
with Pool(1) as pool:
    pool.run("1")
    folder = next(Path(os.environ["SNAKEPIT_RUNTIME_DIR"]).glob("*/default-*"))
    for name in ("1.1.log", "1.1.json", "pool.json", "commands"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    for _ in range(3):
        pool.recycle()
        print(pool.run("2", timeout=10).value)
print(folder.exists())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.split() == ["2", "2", "2", "False"]


@pytest.mark.usefixtures("open_umask")
@pytest.mark.parametrize("write", ["export", "timeline"])
def test_exports_are_private_and_give_nobody_more_than_the_file_in_their_place(tmp_path, write):
    store = open_store(tmp_path / "sessions.sqlite")
    session = open_session("s", store=store)
    new, old = tmp_path / "new.json", tmp_path / "old.json"
    old.touch(mode=0o640)

    for path in (new, old):
        if write == "export":
            export_session(session, path)
        else:
            Timeline("pool").save(path)

    assert (mode_of(new), mode_of(old)) == (0o600, 0o640)
    assert new.read_text() == old.read_text() != ""
    store.close()


READ_ONLY = """
import os, sys
from pathlib import Path
import snakepit_kernel.sessions.state as state
from snakepit_kernel.errors import StoreError
folder = Path(os.environ["SNAKEPIT_DATA_DIR"])
state.open_session("s").variables.register("v", "integer", 1)
state.open_store().close()
folder.chmod(0o500)
if os.geteuid() == 0:
    os.chown(folder, 65534, 65534)
    for path in folder.iterdir():
        os.chown(path, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
try:
    state.open_session("s")
except StoreError as error:
    print(error)
"""


def test_a_store_in_a_directory_that_cannot_be_written_says_so_as_a_store(tmp_path):
    with tempfile.TemporaryDirectory(prefix="spf-", dir="/tmp") as name:
        data = Path(name, "d")
        os.chmod(name, 0o755)
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY],
            env={**os.environ, "SNAKEPIT_DATA_DIR": str(data)},
            capture_output=True,
            text=True,
            check=True,
        )
        data.chmod(0o700)
    assert f"directory {data} must be writable" in done.stdout
    assert "SNAKEPIT_DATA_DIR" in done.stdout
