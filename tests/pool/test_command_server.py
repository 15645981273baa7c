"""Commands that a pool takes from other processes of its user, over the socket in its folder."""

from __future__ import annotations

import asyncio
import shutil
import socket
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from snakepit_kernel import PoolClosed, ToolError
from snakepit_kernel.pool.background_jobs import RunningJobs, running_jobs
from snakepit_kernel.pool.command_server import LOOK_INTERVAL
from snakepit_kernel.pool.commands import (
    MAX_LINE_BYTES,
    CancelJob,
    CommandRefused,
    InterruptWorker,
    KillWorker,
    PoolUnreachable,
    RecycleWorker,
    StopPool,
    send,
    socket_path,
)
from snakepit_kernel.pool.monitoring.published_pools import live_pools


def folder_of(pool):
    """Find the folder of a pool of this process, as another process does."""
    (found,) = [each.folder for each in live_pools()[0] if each.status.name == pool.name]
    return found


def obey(pool, command, patience=20.0):
    asyncio.run(send(folder_of(pool), command, patience))


def say(folder, data):
    """Send bytes to a pool's socket; return what comes back until the pool closes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(socket_path(folder)))
        client.sendall(data)
        return client.makefile("rb").read()


def names(pool):
    return [worker.name for worker in pool.status().workers]


BUSY = """
import time
from pathlib import Path
Path({!r}).touch()
time.sleep(60)
"""


def nap_once_begun(path):
    path.touch()
    time.sleep(60)


nap_once_begun.__module__ = "__main__"  # by value: this module is no module of the workers


def test_a_call_that_is_interrupted_fails_and_its_worker_goes_on(pool, until, tmp_path):
    begun = tmp_path / "begun"
    future = pool.submit(nap_once_begun, begun)
    until(begun.exists)

    obey(pool, InterruptWorker("default-1.1"))

    with pytest.raises(ToolError, match="was interrupted in its worker"):
        future.result(10)
    assert pool.tools.price(item="tea") == 2.5
    assert names(pool) == ["default-1.1"]


def test_a_cell_that_is_interrupted_ends_with_keyboard_interrupt(pool, until, tmp_path):
    begun = tmp_path / "begun"
    with ThreadPoolExecutor(1) as executor:
        cell = executor.submit(pool.run, BUSY.format(str(begun)))
        until(begun.exists)

        obey(pool, InterruptWorker("default-1.1"))

        assert cell.result(10).error.type_name == "KeyboardInterrupt"
    assert names(pool) == ["default-1.1"]


def test_a_worker_that_runs_nothing_or_only_threads_is_not_interrupted(pool, open_pool, until):
    with pytest.raises(CommandRefused, match=r"default-1\.1 runs nothing"):
        obey(pool, InterruptWorker("default-1.1"))

    threads = open_pool(profile="thread", threads_per_worker=2, name="threads")
    future = threads.submit(time.sleep, 1.0)
    until(lambda: threads.status().workers[0].running)
    with pytest.raises(CommandRefused, match="run in threads: cancel their futures"):
        obey(threads, InterruptWorker("threads-1.1"))
    assert future.result(10) is None


def test_a_recycled_worker_has_a_successor_and_is_not_found_again(pool, until):
    obey(pool, RecycleWorker("default-1.1"))

    assert names(pool) == ["default-1.2"]
    assert pool.stats().recycled == 1
    until(lambda: pool.status().ends)
    with pytest.raises(CommandRefused, match=r"no worker default-1\.1 any more.*: .*default-1\.2"):
        obey(pool, KillWorker("default-1.1"))
    assert names(pool) == ["default-1.2"]


def test_a_killed_worker_is_replaced_and_says_why_it_ended(pool, until):
    obey(pool, KillWorker("default-1.1"))

    until(lambda: names(pool) == ["default-1.2"], 10)
    (end,) = pool.status().ends
    assert end.was_wanted
    assert end.reason == "was killed by hand and was killed by SIGKILL"


def test_a_stopped_pool_ends_and_says_why(pool, until):
    folder = folder_of(pool)

    obey(pool, StopPool())

    with pytest.raises(PoolClosed, match="it was stopped by hand"):
        pool.tools.price(item="tea")
    until(lambda: not folder.exists(), 10)
    with pytest.raises(PoolUnreachable, match="it has ended"):
        asyncio.run(send(folder, StopPool()))


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"nonsense\n", b'{"problem":"this is no command: JSON is malformed'),
        (b'{"op":"explode"}\n', b'{"problem":"this is no command: Invalid value'),
        (b'{"op":"kill"}\n', b'{"problem":"this is no command: Object missing'),
        (b'{"op":"kill","worker":"default-1.1","signal":9}\n', b'{"problem":"this is no command'),
        (b'{"op":"kill","worker":"' + b"x" * 2 * MAX_LINE_BYTES + b'"}\n', b""),
    ],
)
def test_what_is_no_command_changes_nothing(pool, line, answer):
    assert say(folder_of(pool), line).startswith(answer)
    assert names(pool) == ["default-1.1"]


def test_a_client_that_says_nothing_keeps_no_other_one_waiting(pool):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(socket_path(folder_of(pool))))
        obey(pool, RecycleWorker("default-1.1"))
    assert names(pool) == ["default-1.2"]


def test_the_socket_is_private(pool):
    path = socket_path(folder_of(pool))

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_socket_that_was_removed_is_there_again(pool, until):
    folder = folder_of(pool)
    shutil.rmtree(folder)

    until(lambda: socket_path(folder).exists(), 5 * LOOK_INTERVAL)
    asyncio.run(send(folder, RecycleWorker("default-1.1")))
    assert names(pool) == ["default-1.2"]


def test_a_pool_that_was_restarted_takes_commands(pool):
    pool.restart()

    obey(pool, RecycleWorker("default-1.1"))
    assert names(pool) == ["default-1.2"]


def test_a_pool_that_does_not_answer_is_unreachable(tmp_path):
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(socket_path(tmp_path)))
        stopped.listen()
        with pytest.raises(PoolUnreachable, match=r"not answer within 0\.1 s"):
            asyncio.run(send(tmp_path, StopPool(), patience=0.1))


class Job:
    """A job that ends when it is cancelled."""

    def __init__(self, number, title):
        self.number, self.title, self.state = number, title, "running"

    def cancel(self):
        self.state = "cancelled"
        return True


def test_a_job_is_published_until_it_has_ended_and_cancelled_by_command(pool, until):
    job = Job(7, "train(api_key='sk-abcdef123456')")
    running_jobs.add(job)
    folder_of(pool)  # of a status without the job
    until(lambda: live_pools()[0][0].status.jobs, 5)

    (shown,) = live_pools()[0][0].status.jobs
    assert shown.number == 7
    assert "train(" in shown.title
    assert "sk-abcdef" not in shown.title
    obey(pool, CancelJob(7))
    assert job.state == "cancelled"
    with pytest.raises(CommandRefused, match="job 7 does not run any more"):
        obey(pool, CancelJob(7))


def test_a_job_that_has_ended_is_kept_no_longer():
    jobs, job = RunningJobs(), Job(1, "x")
    jobs.add(job)
    assert [each.number for each in jobs.status()] == [1]

    job.state = "done"

    assert jobs.status() == ()
    assert not jobs.cancel(1)
    assert jobs._jobs == []
