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


PREEMPTED = """
import os, pathlib, resource, sys
from snakepit_kernel import Pool, StartFailed
group, room = pathlib.Path(sys.argv[1]), int(sys.argv[2])
(group / "cgroup.procs").write_text(str(os.getpid()))
present = int((group / "pids.current").read_text())
(group / "pids.max").write_text(str(present + room))
try:
    pool = Pool(1)
except StartFailed as error:
    print("refused", error)
else:
    print("works", pool.submit(abs, -1).result(20))
    pool.terminate()
"""

GROUPS = [
    path.parent
    for path in Path("/sys/fs/cgroup").glob("pids/cgroup.procs")
    if os.access(path.parent, os.W_OK)
]
"""Where the number of processes and threads of a group can be limited."""


@pytest.mark.skipif(not GROUPS, reason="no cgroup can be made that limits processes")
def test_a_process_without_room_for_threads_is_told_and_lives_on():
    """ZeroMQ aborts a process whose context cannot start its threads."""
    group = GROUPS[0] / f"snakepit-test-{os.getpid()}"
    said = []
    for room in range(12):
        group.mkdir()
        try:
            command = [sys.executable, "-c", PREEMPTED, str(group), str(room)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        finally:
            until = time.monotonic() + 5
            while (group / "cgroup.procs").read_text() and time.monotonic() < until:
                time.sleep(0.02)  # the end of processes that are not ours is no event
            group.rmdir()
        assert done.returncode == 0, (room, done.stderr)
        said.append(done.stdout.strip())
        if said[-1].startswith("works"):
            break
    *refusals, works = said

    assert works == "works 1"
    assert len(refusals) > 4
    assert all(line.startswith("refused") for line in refusals)
    assert all("limit on the number of processes" in line for line in refusals[:4]), refusals
