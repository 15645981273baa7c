"""The lock between the makers and users of environments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from snakepit_kernel.environments.file_lock import FileLock

HOLDER = """
import sys
from pathlib import Path
from snakepit_kernel.environments.file_lock import FileLock
lock = FileLock(Path(sys.argv[1]), exclusive=True)
print("ready", flush=True)
sys.stdin.read()
"""


def test_many_share_it_and_one_alone_has_it_exclusively(tmp_path):
    path = tmp_path / "a.lock"
    first = FileLock(path, exclusive=False)
    second = FileLock(path, exclusive=False)

    with pytest.raises(BlockingIOError):
        FileLock(path, exclusive=True)
    first.release()
    with pytest.raises(BlockingIOError):
        FileLock(path, exclusive=True)
    second.release()
    alone = FileLock(path, exclusive=True)
    with pytest.raises(BlockingIOError):
        FileLock(path, exclusive=False)
    alone.release()


def test_a_holder_that_is_killed_sets_it_free_for_who_waits_and_was_told_of_it(tmp_path):
    path = tmp_path / "a.lock"
    told: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "ready\n"

        def wait(text: str) -> None:
            told.append(text)
            holder.kill()

        lock = FileLock(path, exclusive=True, on_wait=wait)

    assert told == [f"process {holder.pid}"]
    assert holder.returncode == -signal.SIGKILL
    lock.release()


def test_a_lock_on_a_file_that_was_removed_meanwhile_does_not_count(tmp_path):
    path = tmp_path / "a.lock"
    remover = FileLock(path, exclusive=True)
    waits = threading.Event()
    got: list[FileLock] = []
    waiter = threading.Thread(
        target=lambda: got.append(FileLock(path, exclusive=True, on_wait=lambda _: waits.set()))
    )
    waiter.start()
    assert waits.wait(5)

    remover.remove()
    path.touch(mode=0o600)  # a third process has made it again
    remover.release()
    waiter.join(5)

    assert os.path.samestat(os.fstat(got[0].descriptor), os.stat(path))
    with pytest.raises(BlockingIOError):
        FileLock(path, exclusive=False)
    got[0].release()


def test_a_forked_child_that_ends_does_not_set_it_free(tmp_path):
    lock = FileLock(tmp_path / "a.lock", exclusive=True)
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)

    with pytest.raises(BlockingIOError):
        FileLock(tmp_path / "a.lock", exclusive=False)
    lock.release()


def test_one_that_nobody_refers_to_any_more_is_free(tmp_path):
    FileLock(tmp_path / "a.lock", exclusive=True)

    FileLock(tmp_path / "a.lock", exclusive=True).release()
