"""Rows of the registry that name files: only what can be a run's is removed."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from snakepit_kernel.ids import new_run_id
from snakepit_kernel.processes.guardian import remove
from snakepit_kernel.processes.run_folders import make_folder
from snakepit_kernel.processes.run_registry import Registry
from snakepit_kernel.processes.sweep import sweep

DEAD = "999999:1"


@pytest.fixture
def runtime(monkeypatch, tmp_path) -> Path:
    for name in ("SNAKEPIT_RUNTIME_DIR", "SNAKEPIT_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        folder = tmp_path / name
        folder.mkdir(mode=0o700)
        monkeypatch.setenv(name, str(folder))
    return tmp_path / "SNAKEPIT_RUNTIME_DIR"


@pytest.fixture
def jupyters(runtime) -> Path:
    return runtime.with_name("JUPYTER_RUNTIME_DIR")


def sweep_row_with(*paths: Path | str) -> None:
    """Write down a run of a dead owner that names some files, as others could; then sweep."""
    registry = Registry()
    run_id = new_run_id()
    registry.reserve(run_id, label="dead", leftovers=[str(path) for path in paths])
    with closing(sqlite3.connect(registry.path)) as connection, connection:
        connection.execute("UPDATE runs SET owner = ?", (DEAD,))
    asyncio.run(sweep(registry, 0.0))
    assert registry.runs() == []


def bind(path: Path) -> Path:
    folder = os.open(path.parent, os.O_PATH)  # its whole path may be too long for a socket
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)
    return path


def test_the_files_of_a_run_go_with_it(runtime, jupyters, caplog):
    folder = runtime / new_run_id() / "pool-abcdef"
    folder.mkdir(parents=True)
    other = runtime / new_run_id()
    other.mkdir()
    (folder / "1.1.json").touch()
    (other / "file").touch()
    connection_file = jupyters / "kernel-0123-4567.json"
    connection_file.touch()
    sockets = [bind(runtime / f"{new_run_id()}-1"), bind(jupyters / "kernel-0123-ipc-5")]
    missing = "/nowhere/at/all"

    sweep_row_with(folder / "1.1.json", other, connection_file, *sockets, missing)

    assert list(runtime.rglob("*.json")) == list(jupyters.iterdir()) == []
    assert not other.exists()
    assert not any(path.exists() for path in sockets)
    assert [item for item in caplog.records if item.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    "name",
    [
        "elsewhere/directory",
        "elsewhere/file.json",
        "elsewhere/kernel-1.json",
        "elsewhere/link-to-directory",
        "JUPYTER_RUNTIME_DIR/jpserver-1.json",
        "JUPYTER_RUNTIME_DIR/../elsewhere/kernel-1.json",
        "JUPYTER_RUNTIME_DIR/kernel-9.json",
        "JUPYTER_RUNTIME_DIR",
        "SNAKEPIT_RUNTIME_DIR",
        "SNAKEPIT_RUNTIME_DIR/notes",
        "SNAKEPIT_RUNTIME_DIR/aaaaaaaaaaaaa/../../elsewhere/directory",
        "SNAKEPIT_RUNTIME_DIR/bbbbbbbbbbbbb",
        "SNAKEPIT_RUNTIME_DIR/bbbbbbbbbbbbb/file.json",
        "SNAKEPIT_DATA_DIR/sessions.sqlite",
        "SNAKEPIT_DATA_DIR",
        "",
    ],
)
def test_what_is_no_file_of_a_run_stays_and_is_named(runtime, jupyters, tmp_path, caplog, name):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "directory").mkdir(parents=True)
    for kept in ("directory/file", "file.json", "kernel-1.json"):
        (elsewhere / kept).touch()
    (elsewhere / "link-to-directory").symlink_to("directory")
    (jupyters / "jpserver-1.json").touch()
    (jupyters / "kernel-1.json").touch()
    (jupyters / "kernel-9.json").symlink_to(elsewhere / "file.json")
    (runtime / "notes").mkdir()
    (runtime / "aaaaaaaaaaaaa").mkdir()
    (runtime / "bbbbbbbbbbbbb").symlink_to(elsewhere)
    (tmp_path / "SNAKEPIT_DATA_DIR" / "sessions.sqlite").touch()
    before = sorted(map(str, tmp_path.rglob("*")))

    sweep_row_with(f"{tmp_path}/{name}")

    left = {path for path in map(str, tmp_path.rglob("*")) if "runs.sqlite" not in path}
    assert left - {str(tmp_path / "SNAKEPIT_DATA_DIR" / "ended")} == set(before)
    (warning,) = [item.getMessage() for item in caplog.records if item.levelno >= logging.WARNING]
    assert warning.startswith(f"{tmp_path}/{name}".rstrip("/"))
    assert "is not removed" in warning


def test_a_run_folder_that_a_living_process_made_stays(runtime):
    folder = make_folder("alive")
    sweep_row_with(folder.parent)
    assert folder.exists()


def test_a_row_that_is_said_to_be_of_an_earlier_boot_but_whose_owner_lives_is_left_alone(jupyters):
    (jupyters / "kernel-1.json").touch()
    registry = Registry()
    registry.reserve("a" * 13, label="damaged", leftovers=[str(jupyters / "kernel-1.json")])
    with closing(sqlite3.connect(registry.path)) as connection, connection:
        connection.execute("UPDATE runs SET boot_id = 'x' || substr(boot_id, 2)")

    asyncio.run(sweep(registry, 0.0))

    assert [run.label for run in registry.runs()] == ["damaged"]
    assert (jupyters / "kernel-1.json").exists()


def test_what_is_behind_a_link_in_a_folder_stays_when_that_is_removed(tmp_path):
    kept, folder = tmp_path / "kept", tmp_path / "folder"
    (folder / "deeper").mkdir(parents=True)
    kept.mkdir()
    (kept / "file").touch()
    (folder / "deeper" / "link").symlink_to(kept)
    (folder / "deeper" / "file").touch()

    remove(str(folder))
    remove(str(tmp_path / "missing"))

    assert not os.path.lexists(folder)
    assert (kept / "file").exists()
