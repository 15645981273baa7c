"""The registry of runs."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sqlite3
import subprocess
import sys
import time

import pytest

from snakepit_kernel.ids import new_run_id
from snakepit_kernel.processes.end_report import EndReport
from snakepit_kernel.processes.identity import ProcessIdentity
from snakepit_kernel.processes.pid_scope import here
from snakepit_kernel.processes.run_registry import Registry


@pytest.fixture
def registry(tmp_path) -> Registry:
    return Registry(tmp_path / "runs.sqlite")


def own_identity() -> ProcessIdentity:
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    return identity


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [item.getMessage() for item in caplog.records if item.levelno >= logging.WARNING]


def test_a_reserved_run_is_known_with_its_owner_before_it_has_processes(registry):
    before = time.time()
    registry.reserve("a" * 13, label="R", parent="b" * 13)

    (run,) = registry.runs()

    assert (run.run_id, run.label, run.parent) == ("a" * 13, "R", "b" * 13)
    assert run.owner == own_identity()
    assert (run.guardian, run.process) == (None, None)
    assert run.scope == here()
    assert before <= run.started <= time.time()
    assert not run.is_dead


def test_an_activated_run_knows_its_processes(registry):
    registry.reserve("a" * 13, label="R")
    registry.activate("a" * 13, ProcessIdentity(1, 2), ProcessIdentity(3, 4))
    (run,) = registry.runs()
    assert run.guardian == ProcessIdentity(1, 2)
    assert run.process == ProcessIdentity(3, 4)


def test_a_retired_run_is_forgotten_and_others_are_not(registry):
    registry.reserve("a" * 13, label="R")
    registry.reserve("b" * 13, label="R")
    registry.retire("a" * 13)
    registry.retire("c" * 13)
    assert [run.run_id for run in registry.runs()] == ["b" * 13]


def test_runs_survive_the_registry_that_wrote_them(registry):
    registry.reserve("a" * 13, label="R")
    assert [run.run_id for run in Registry(registry.path).runs()] == ["a" * 13]


def test_the_registry_lies_in_the_data_directory_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("SNAKEPIT_DATA_DIR", str(tmp_path))
    Registry().reserve("a" * 13, label="R")
    assert (tmp_path / "runs.sqlite").is_file()


@pytest.mark.parametrize("alive", ["owner", "guardian", "none"])
def test_a_run_is_dead_when_neither_owner_nor_guardian_lives(registry, alive):
    living, dead = own_identity(), ProcessIdentity(os.getpid(), 1)
    registry.reserve("a" * 13, label="R")
    registry.activate("a" * 13, living if alive == "guardian" else dead, None)
    with sqlite3.connect(registry.path) as connection:
        owner = living if alive == "owner" else dead
        connection.execute("UPDATE runs SET owner = ?", (str(owner),))
    connection.close()
    assert registry.runs()[0].is_dead == (alive == "none")


def test_a_run_of_another_boot_is_dead_though_its_pids_are_in_use(registry):
    registry.reserve("a" * 13, label="R")
    with sqlite3.connect(registry.path) as connection:
        connection.execute("UPDATE runs SET boot_id = 'another'")
    connection.close()
    assert registry.runs()[0].is_dead


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("run_id", ""),
        ("run_id", "../elsewhere"),
        ("owner", "None"),
        ("guardian", "x:y"),
        ("process", "1"),
        ("leftovers", "{"),
        ("leftovers", "[1]"),
        ("leftovers", "null"),
        pytest.param("leftovers", "[" * 100_000, id="leftovers in each other"),
    ],
)
def test_a_damaged_row_is_passed_over(registry, column, value):
    registry.reserve("a" * 13, label="damaged")
    registry.reserve("b" * 13, label="R")
    with sqlite3.connect(registry.path) as connection:
        connection.execute(f"UPDATE runs SET {column} = ? WHERE label = 'damaged'", (value,))
    connection.close()

    assert [run.run_id for run in registry.runs()] == ["b" * 13]


def test_many_processes_that_write_at_once_lose_nothing(registry):
    code = """
import logging, sys
logging.basicConfig(level=logging.WARNING)
from pathlib import Path
from snakepit_kernel.ids import new_run_id
from snakepit_kernel.processes.identity import ProcessIdentity
from snakepit_kernel.processes.run_registry import Registry
registry = Registry(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(8):
    kept, retired = new_run_id(), new_run_id()
    registry.reserve(kept, label="kept")
    registry.reserve(retired, label="retired")
    registry.activate(kept, ProcessIdentity(1, 1), None)
    registry.retire(retired)
"""
    command = [sys.executable, "-c", code, str(registry.path)]
    pipe = subprocess.PIPE
    writers = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(6)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"

    errors = [writer.communicate("go\n")[1] for writer in writers]

    assert errors == [""] * 6
    runs = registry.runs()
    assert [run.label for run in runs] == ["kept"] * 48
    assert all(run.guardian == ProcessIdentity(1, 1) for run in runs)


@pytest.mark.parametrize("damage", ["not a database", "torn page"])
def test_a_corrupt_registry_is_kept_as_backup_with_one_warning_and_works_on(
    registry, caplog, damage
):
    for _ in range(200):  # several pages
        registry.reserve(new_run_id(), label="old")
    content = registry.path.read_bytes()
    if damage == "not a database":
        broken = b"garbage" * 1000
    else:
        broken = content[:4096] + b"\xff" * (len(content) - 4096)
    registry.path.write_bytes(broken)

    registry.reserve("a" * 13, label="new")
    registry.activate("a" * 13, ProcessIdentity(1, 1), None)

    assert [run.run_id for run in registry.runs()] == ["a" * 13]
    assert registry.runs()[0].guardian is not None
    (backup,) = registry.path.parent.glob("runs.sqlite.corrupt-*")
    assert backup.read_bytes() == broken
    (warning,) = warnings_in(caplog)
    assert str(backup) in warning


def test_a_corrupt_registry_that_many_find_at_once_is_set_aside_once_and_loses_no_new_run(
    registry,
):
    registry.path.write_bytes(b"garbage" * 1000)
    code = """
import logging, sys
logging.basicConfig(level=logging.WARNING)
from pathlib import Path
from snakepit_kernel.ids import new_run_id
from snakepit_kernel.processes.run_registry import Registry
print("ready", flush=True)
sys.stdin.readline()
Registry(Path(sys.argv[1])).reserve(new_run_id(), label="new")
"""
    command = [sys.executable, "-c", code, str(registry.path)]
    pipe = subprocess.PIPE
    finders = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(6)
    ]
    for finder in finders:
        assert finder.stdout is not None
        assert finder.stdout.readline() == "ready\n"
    for finder in finders:
        assert finder.stdin is not None
        finder.stdin.write("go\n")
        finder.stdin.flush()

    errors = "".join(finder.communicate()[1] for finder in finders)

    assert len(registry.runs()) == 6
    assert errors.count("was corrupt") == 1
    assert len(errors.splitlines()) == 1
    assert len(list(registry.path.parent.glob("runs.sqlite.corrupt-*"))) == 1


@pytest.mark.parametrize("obstacle", ["a file in place of the directory", "a directory as file"])
def test_a_registry_that_cannot_be_written_costs_one_warning_only(tmp_path, caplog, obstacle):
    if obstacle == "a directory as file":
        path = tmp_path / "runs.sqlite"
        path.mkdir()
    else:
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "runs.sqlite"
    registry = Registry(path)

    registry.reserve("a" * 13, label="R")
    registry.activate("a" * 13, ProcessIdentity(1, 1), None)
    registry.retire("a" * 13)

    assert registry.runs() == []
    (warning,) = warnings_in(caplog)
    assert "cannot be used" in warning


def test_a_lock_that_is_never_given_back_costs_one_warning_only(registry, monkeypatch, caplog):
    monkeypatch.setattr("snakepit_kernel.store.run_database.BUSY_PATIENCE", 0.1)
    with registry.path.with_name("runs.sqlite.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        registry.reserve("a" * 13, label="R")
        assert registry.runs() == []
    assert len(warnings_in(caplog)) == 1

    registry.reserve("b" * 13, label="R")
    assert [run.run_id for run in registry.runs()] == ["b" * 13]


def test_a_data_directory_that_cannot_be_made_costs_one_warning_only(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SNAKEPIT_DATA_DIR", str(tmp_path / "file" / "data"))
    registry = Registry()

    registry.reserve("a" * 13, label="R")

    assert registry.runs() == []
    (warning,) = warnings_in(caplog)
    assert str(tmp_path / "file" / "data") in warning


def test_what_the_end_of_a_run_took_is_remembered_and_found_by_the_run_that_replaced_it(registry):
    registry.reserve("a" * 13, label="R")
    registry.retire("a" * 13, EndReport(verified=True, count=3))
    registry.reserve("b" * 13, label="R", previous="a" * 13)
    registry.reserve("c" * 13, label="R")

    found = registry.ended_before("b" * 13)

    assert (found.run_id, found.label, found.report.count) == ("a" * 13, "R", 3)
    assert found.started <= found.ended
    assert registry.ended_before("c" * 13) is None
    assert [run.run_id for run in registry.ended_runs()] == ["a" * 13]


def test_only_so_many_ended_runs_are_remembered(registry, monkeypatch):
    monkeypatch.setattr("snakepit_kernel.processes.run_registry.REMEMBERED_RUNS", 3)
    names = [letter * 13 for letter in "abcde"]
    for name in names:
        registry.reserve(name, label="R")
        registry.retire(name, EndReport(verified=True))
    assert [run.run_id for run in registry.ended_runs()] == names[:1:-1]


FULL_DISK = """
import logging, resource, sys
logging.basicConfig(level=logging.WARNING)
from pathlib import Path
from snakepit_kernel.processes.run_registry import Registry
registry = Registry(Path(sys.argv[1]))
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
for number in range(100):
    registry.reserve(f"{number:a>13}", label="R" * 2000)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
registry.reserve("b" * 13, label="R")
runs = registry.runs()
print(len(runs) > 1, len(runs) < 101, "b" * 13 in [run.run_id for run in runs])
"""


def test_a_registry_whose_disk_is_full_costs_one_warning_and_works_once_there_is_room(tmp_path):
    """A limit of the file size stands for the full disk: no write beyond it succeeds."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "runs.sqlite"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["True", "True", "True"], done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert "cannot be used" in warning


@pytest.mark.parametrize("steps", range(1, 5))
def test_a_run_is_crossed_out_though_the_event_loop_ends_meanwhile(registry, steps):
    run_id = new_run_id()
    retiring: list[asyncio.Task[None]] = []

    async def scenario() -> None:
        await registry.areserve(run_id, label="R")
        retiring.append(asyncio.create_task(registry.aretire(run_id, EndReport(verified=True))))
        for _ in range(steps):
            await asyncio.sleep(0)

    asyncio.run(scenario())
    assert registry.runs() == []
    assert retiring[0].done()
