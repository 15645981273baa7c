"""A runtime directory that vanishes, cannot be written, or is full: pools say so, and heal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snakepit_kernel import Pool, WorkerDied


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of this test alone."""
    place = Path(tempfile.mkdtemp(prefix="spt-", dir="/tmp"))  # short: sockets lie below it
    monkeypatch.setenv("SNAKEPIT_RUNTIME_DIR", str(place / "s"))
    yield place / "s"
    shutil.rmtree(place)


def pid_of(pool: Pool) -> int:
    return pool.submit(os.getpid).result(20)


def private(folder: Path) -> list[bool]:
    folders = [folder.parent.parent, folder.parent, folder]
    return [stat.S_IMODE(each.stat().st_mode) & 0o777 == 0o700 for each in folders]


def test_a_pool_whose_directory_was_removed_makes_it_anew(runtime, open_pool):
    pool = open_pool()
    assert pool.run("6 * 7").value == 42
    shutil.rmtree(runtime)

    assert pool.submit(abs, -3).result(20) == 3
    assert pool.run("6 * 7").value == 42  # its sockets are connected
    until = time.monotonic() + 10
    while not (pool._engine._folder.path / "pool.json").exists():
        assert time.monotonic() < until
        time.sleep(0.02)  # what a pool publishes is no event
    assert private(pool._engine._folder.path) == [True] * 3


def test_a_worker_whose_sockets_were_removed_is_replaced_by_one_that_runs_cells(runtime, open_pool):
    pool = open_pool(grace=0.5)
    # A worker's sockets may be there before its first cell, which is the first to connect to them.
    assert pool.submit(_open_channels).result(20)
    before = pid_of(pool)
    shutil.rmtree(runtime)

    with pytest.raises(WorkerDied, match=f"has lost its sockets.*{runtime}.*was removed"):
        pool.run("6 * 7")

    assert pool.run("6 * 7").value == 42
    assert pid_of(pool) != before


def _open_channels() -> bool:
    from IPython import get_ipython

    return get_ipython() is not None


_open_channels.__module__ = "__main__"  # by value: this module is no module of the workers


@pytest.mark.parametrize("change", ["kill", "recycle", "resize"])
def test_workers_start_again_after_the_directory_was_removed(change, runtime, open_pool):
    pool = open_pool()
    pool.run("0")
    before = pid_of(pool)
    shutil.rmtree(runtime)

    if change == "kill":
        os.kill(before, signal.SIGKILL)
        while not pool.stats().died:
            time.sleep(0.01)  # a pool does not tell that it has seen an end
    elif change == "recycle":
        pool.recycle()
    else:
        pool.resize(2)

    assert pool.run("6 * 7").value == 42
    assert private(pool._engine._folder.path) == [True] * 3


@pytest.mark.parametrize("change", ["kill", "recycle"])
def test_workers_start_again_after_the_login_session_has_ended(change, monkeypatch, open_pool):
    """Its directory goes with it, and cannot be made anew before the next one."""
    session = Path(tempfile.mkdtemp(prefix="spt-", dir="/tmp"))
    for name in ("SNAKEPIT_RUNTIME_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
    pool = open_pool()
    pool.run("0")
    assert pool._engine._folder.path.is_relative_to(session)
    before = pid_of(pool)
    shutil.rmtree(session)

    if change == "kill":
        os.kill(before, signal.SIGKILL)
        while not pool.stats().died:
            time.sleep(0.01)  # a pool does not tell that it has seen an end
    else:
        pool.recycle()

    assert pool.run("6 * 7").value == 42
    folder = pool._engine._folder.path
    assert private(folder) == [True] * 3
    pool.shutdown()
    assert not folder.exists()
    assert not session.exists()


PROGRAM = """
import json, os, pathlib, signal, subprocess, sys, time
from snakepit_kernel import Pool, PoolDegraded, StartFailed
runtime, how = os.environ["SNAKEPIT_RUNTIME_DIR"], sys.argv[1]

def spoil():
    if how == "read-only":
        # Not the mount that is there: its files are open for writing.
        subprocess.run(["mount", "--bind", runtime, runtime], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", runtime], check=True)
    else:
        for number, file in enumerate(list(pathlib.Path(runtime).rglob("*.*"))):
            if file.is_file():
                os.link(file, f"{runtime}/{number}")  # its removal makes no room
        with open(f"{runtime}/filler", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(512))
            except OSError:
                pass

def repair():
    if how == "read-only":
        subprocess.run(["umount", "--lazy", runtime], check=True)
    else:
        os.unlink(f"{runtime}/filler")

def decode_error(work):
    try:
        work()
    except Exception as error:
        return [type(error).__name__, str(error)]

pool = Pool(1, grace=0.5)
pid = pool.submit(os.getpid).result(20)
spoil()
try:
    recycling = decode_error(pool.recycle)
    resizing = decode_error(lambda: pool.resize(2))
    os.kill(pid, signal.SIGKILL)
    while not pool.stats().died:
        time.sleep(0.01)
    future = pool.submit(abs, -1)
    began = time.monotonic()
    waited = decode_error(lambda: future.result(20))
    seconds = time.monotonic() - began
    called = decode_error(lambda: pool.run("1"))
    started = pool.stats().started
    problem = pool.status().problem
finally:
    repair()
until = time.monotonic() + 20
while decode_error(lambda: pool.run("1")) is not None and time.monotonic() < until:
    time.sleep(0.1)
value = pool.run("6 * 7").value
pool.terminate()
print(json.dumps([recycling, resizing, waited, called, seconds, started, problem, value]))
"""


def in_namespace(*command: str) -> list[str]:
    mount = 'mount -t tmpfs -o size=256k,mode=700 none "$SNAKEPIT_RUNTIME_DIR" && exec "$@"'
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", "--mount", *user, "sh", "-c", mount, "sh", *command]


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    env = {**os.environ, "SNAKEPIT_RUNTIME_DIR": "/tmp"}
    return subprocess.run(in_namespace("true"), env=env, stderr=-3, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="this machine lets us mount nothing")
@pytest.mark.parametrize("how", ["read-only", "full"])
def test_a_pool_whose_directory_cannot_be_written_is_degraded_until_it_can(how, runtime):
    runtime.mkdir(mode=0o700)
    told: Callable[..., Any] = json.loads
    done = subprocess.run(
        in_namespace(sys.executable, "-c", PROGRAM, how),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    recycling, resizing, waited, called, seconds, started, problem, value = told(done.stdout)

    words = {"read-only": "Read-only file system|must belong to you and be writable"}
    words = words.get(how, "No space left on device")
    for error in (recycling, resizing):
        assert error[0] == "StartFailed"
    for error in (waited, called):
        assert error[0] == "PoolDegraded"
    texts = [recycling[1], resizing[1], waited[1], called[1], problem]
    assert all(any(word in text for word in words.split("|")) for text in texts), texts
    assert seconds < 15
    assert started < 10
    assert value == 42
    assert "Traceback" not in done.stderr
