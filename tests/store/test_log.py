"""The log of the store: what SQLite would drop of a damaged one is told, and kept."""

from __future__ import annotations

import logging
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from snakepit_kernel.sessions.state import open_session
from snakepit_kernel.store.store import open_store

VALUES = {f"v{number}": f"{number}" * 100 for number in range(50)}

WRITE = """
import os, sys
from snakepit_kernel.sessions.state import open_session
variables = open_session("s", store=sys.argv[1]).variables
for number in range(50):
    variables.register(f"v{number}", "string", f"{number}" * 100)
print("written", flush=True)
if sys.argv[2] == "stay":
    sys.stdin.readline()
os._exit(0)  # as if it were killed: nobody closes the file
"""


def write(path: Path, how: str = "die") -> subprocess.Popen[str]:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE, path, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "written\n"
    if how == "die":
        writer.communicate()
    return writer


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a store that nobody has closed."""
    folder = tmp_path_factory.mktemp("written")
    write(folder / "sessions.sqlite")
    return folder


@pytest.fixture
def left(written: Path, path: Path) -> Path:
    """Give a copy of it."""
    for file in written.iterdir():
        shutil.copy(file, path.parent)
    return path


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def read(path: Path) -> dict[str, str]:
    store = open_store(path)
    try:
        return dict(open_session("s", store=store).variables)
    finally:
        store.close()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [item.getMessage() for item in caplog.records if item.levelno >= logging.WARNING]


def test_a_log_that_nobody_has_closed_is_taken_without_a_word(left, caplog):
    assert read(left) == VALUES
    assert warnings_in(caplog) == []
    assert list(left.parent.glob("*corrupt*")) == []


@pytest.mark.parametrize("seed", range(8))
def test_one_wrong_bit_in_the_log_loses_no_acknowledged_value_and_is_told(left, caplog, seed):
    chance = random.Random(seed)
    frame = 32 + 4120 * chance.randrange((log_of(left).stat().st_size - 32) // 4120)
    flip(log_of(left), frame + chance.choice([8, 16, 24, 3000]), chance.randrange(8))
    damaged = log_of(left).read_bytes()

    found = read(left)

    assert found.keys() == VALUES.keys()
    assert sum(found[name] == value for name, value in VALUES.items()) >= 49
    (warning,) = warnings_in(caplog)
    assert "was damaged: only" in warning
    (backup,) = left.parent.glob("*corrupt*-wal")
    assert str(backup) in warning
    assert backup.read_bytes() == damaged
    assert read(left) == found
    assert len(warnings_in(caplog)) == 1


@pytest.mark.parametrize("place", [0, 4, 8, 16, 24])
def test_a_wrong_bit_in_the_head_of_the_log_loses_nothing(left, caplog, place):
    flip(log_of(left), place)
    assert read(left) == VALUES
    assert len(warnings_in(caplog)) == 1


def test_a_damaged_log_without_its_index_is_told_too(left, caplog):
    left.with_name(f"{left.name}-shm").unlink()
    flip(log_of(left), 32 + 10 * 4120 + 500)
    assert read(left) == VALUES
    assert len(warnings_in(caplog)) == 1


def test_a_last_transaction_that_was_not_finished_is_dropped_without_a_word(left, caplog):
    """Without the index, which is not written before the transaction is whole."""
    left.with_name(f"{left.name}-shm").unlink()
    content = log_of(left).read_bytes()
    log_of(left).write_bytes(content[:-2000])
    assert len(read(left)) == 49
    assert warnings_in(caplog) == []


def test_a_damaged_log_of_which_all_is_in_the_file_is_of_no_interest(left, caplog):
    with closing(sqlite3.connect(left)) as keeps_it_open:
        keeps_it_open.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        folder = left.parent / "copy"
        folder.mkdir()
        for file in list(left.parent.glob("sessions.sqlite*")):
            shutil.copy(file, folder)
    flip(log_of(folder / left.name), 4)
    assert read(folder / left.name) == VALUES
    assert warnings_in(caplog) == []


def test_a_log_that_another_process_writes_to_is_not_looked_at(path, caplog):
    writer = write(path, "stay")
    try:
        assert read(path) == VALUES
        assert warnings_in(caplog) == []
    finally:
        writer.communicate("end\n")


def test_a_store_that_is_closed_leaves_nothing_in_the_log_though_others_have_it_open(path):
    writer = write(path, "stay")
    store = open_store(path)
    open_session("mine", store=store).variables.register("v", "string", "mine")
    store.close()
    try:
        content = path.read_bytes()
        assert VALUES["v49"].encode() in content
        assert b"mine" in content
    finally:
        writer.communicate("end\n")


FULL_DISK = """
import resource, sys
from snakepit_kernel.errors import StoreError
from snakepit_kernel.sessions.state import open_session
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
try:
    open_session("s", store=sys.argv[1])
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [1000, 40_000])
def test_a_damaged_log_stays_as_it_is_while_the_disk_is_full(left, limit):
    """A limit of the file size stands for the full disk: no write beyond it succeeds."""
    flip(log_of(left), 32 + 10 * 4120 + 500)
    files = (left, log_of(left))
    before = [file.read_bytes() for file in files]

    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, left, str(limit)],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.startswith("the store of sessions ")
    assert [file.read_bytes() for file in files] == before
    assert list(left.parent.glob("*corrupt*")) == list(left.parent.glob("*whole*")) == []
    assert read(left) == VALUES  # there is room again
