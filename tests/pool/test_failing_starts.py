"""Starts that fail: at once, with path and remedy, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import zmq

from snakepit_kernel import Pool, StartFailed

PROGRAM = """
import os, resource, signal, sys, threading
from snakepit_kernel import Pool
{prepare}
before = threading.active_count()
try:
    Pool(1)
except BaseException as error:
    print(type(error).__name__, error)
left = [t.name for t in threading.enumerate() if "template" not in t.name]
print("left", left, os.listdir(os.environ["SNAKEPIT_RUNTIME_DIR"]))
"""


def start(tmp_path: Path, prepare: str, **env: str) -> tuple[str, str]:
    """Open a pool in a process of its own; return its error, and what is left there."""
    folder = tmp_path / "r"
    folder.mkdir(mode=0o700, exist_ok=True)
    env = {"SNAKEPIT_RUNTIME_DIR": str(folder), **env}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(prepare=prepare)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    *error, left = done.stdout.splitlines()
    return "\n".join(error), left


NOTHING = "left ['MainThread'] []"


@pytest.fixture
def long_runtime(tmp_path, monkeypatch):
    """Give the runtime directory a path of some length."""

    def choose(length: int) -> Path:
        path = Path(f"{tmp_path}/{'x' * 200}"[:length])
        monkeypatch.setenv("SNAKEPIT_RUNTIME_DIR", str(path))
        return path

    return choose


@pytest.mark.parametrize("length", [92, 98, 107, 150])
def test_a_runtime_directory_with_too_long_a_path_is_told_at_once(long_runtime, length):
    path = long_runtime(length)
    began = time.monotonic()

    with pytest.raises(StartFailed, match="is too long.* set SNAKEPIT_RUNTIME_DIR to a shorter"):
        Pool(2)

    assert time.monotonic() - began < 5
    assert list(path.iterdir()) == []
    assert not [t for t in threading.enumerate() if t.name == "snakepit-default"]


def test_the_longest_path_that_has_room_for_sockets_does(long_runtime, open_pool):
    long_runtime(91)

    assert open_pool(2).run("1").value == 1


def test_a_disk_without_room_is_told_with_path_and_remedy(tmp_path):
    no_room = (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    )
    error, left = start(tmp_path, no_room)

    assert "make room there, or set SNAKEPIT_RUNTIME_DIR to another directory" in error
    assert str(tmp_path / "r") in error
    assert left == NOTHING


def test_a_working_directory_that_was_removed_is_told(tmp_path):
    (tmp_path / "gone").mkdir()
    gone = str(tmp_path / "gone")
    error, left = start(tmp_path, f"os.chdir({gone!r}); os.rmdir({gone!r})")

    assert "the working directory of this process was removed; os.chdir() to another" in error
    assert gone in error
    assert left == NOTHING


def test_a_process_without_descriptors_hears_of_it(tmp_path):
    error, left = start(tmp_path, "resource.setrlimit(resource.RLIMIT_NOFILE, (14, 14))")

    assert error.startswith(("StartFailed", "OSError"))
    assert "Too many open files" in error
    assert left == NOTHING


@pytest.mark.parametrize("variable", ["SNAKEPIT_RUNTIME_DIR", "SNAKEPIT_DATA_DIR"])
def test_a_file_in_the_place_of_a_directory_is_told_with_the_variable(
    variable, tmp_path, monkeypatch, open_pool, caplog
):
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "file"))

    if variable == "SNAKEPIT_RUNTIME_DIR":
        with pytest.raises(PermissionError, match=rf"{tmp_path}/file.*set {variable}"):
            Pool(1)
    else:  # what is durable is missing then, and the pool works
        assert open_pool().run("1").value == 1
        assert variable in caplog.text


def test_a_socket_that_could_not_be_connected_does_not_keep_a_pool_from_ending():
    pool = Pool(1)
    forgotten = pool._engine._managers_context.socket(zmq.DEALER)
    began = time.monotonic()

    pool.terminate()

    assert time.monotonic() - began < 5
    assert forgotten.closed


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.2])
def test_ctrl_c_during_a_start_leaves_nothing(tmp_path, seconds):
    interrupt = f"threading.Timer({seconds}, os.kill, (os.getpid(), signal.SIGINT)).start()"
    error, left = start(tmp_path, interrupt)

    assert error.strip() == "KeyboardInterrupt"
    assert left == NOTHING
