"""What a status says of the calls and cells that run at its moment."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snakepit_kernel import Pool, WorkerStatus


@pytest.fixture(scope="module")
def pool(open_for_all: Callable[..., Pool]) -> Pool:
    return open_for_all(name="one")


class Gate:
    """Holds work in a worker until the test lets it go on."""

    def __init__(self, folder: Path) -> None:
        self.entered, self.left = folder / "entered", folder / "left"
        for path in (self.entered, self.left):
            os.mkfifo(path)

    def code(self) -> str:
        return f"open({str(self.entered)!r}, 'w').close(); open({str(self.left)!r}).close()"

    def wait(self) -> None:
        self.entered.open().close()

    def open(self) -> None:
        self.left.open("w").close()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def status_inside(pool: Pool, gate: Gate, work: Callable[[], Any]) -> WorkerStatus:
    """Begin work that stops at the gate, and return the worker's status there."""
    thread = threading.Thread(target=work)
    thread.start()
    gate.wait()
    (worker,) = pool.status().workers
    gate.open()
    thread.join()
    return worker


def stop(code: str) -> None:
    exec(code)


def hold(code: str) -> None:
    exec(code)


for _function in (stop, hold):
    _function.__module__ = "__main__"  # by value: this module is no module of the workers


def test_a_queued_call_runs_only_since_the_one_before_it_has_ended(pool, gate):
    first = pool.submit(stop, "import time; time.sleep(0.6)")
    second = pool.submit(hold, gate.code())
    gate.wait()
    assert first.done()
    (worker,) = pool.status().workers
    gate.open()
    second.result()

    assert worker.state == "busy"
    assert worker.running == "hold"
    assert worker.running_seconds < 0.5 < worker.seconds


def test_each_kind_of_work_is_named_with_its_session(pool, gate):
    session = pool.session("experiment")
    pool.tool(stop)
    code = gate.code()
    kinds: dict[str, Callable[[], Any]] = {
        "hold": lambda: session.submit(hold, code).result(),
        "stop": lambda: session.call("stop", {"code": code}),
        f"{code}  # here": lambda: session.run(f"\n\n{code}  # here\n1"),
    }

    for name, work in kinds.items():
        worker = status_inside(pool, gate, work)
        assert (worker.running, worker.session) == (name, "experiment")
        assert worker.running_seconds < 5
    assert status_inside(pool, gate, lambda: pool.run(code)).session is None
    (idle,) = pool.status().workers
    assert (idle.state, idle.running, idle.session, idle.running_seconds) == (
        *("ready", None, None),
        None,
    )


def test_a_secret_in_the_first_line_of_a_cell_is_not_shown(pool, gate):
    secret = "sk-3fA9xQ7bLw2Zr8Tn5Vd1"

    worker = status_inside(pool, gate, lambda: pool.run(f"api_key = '{secret}'; {gate.code()}"))

    assert worker.running.startswith("api_key = ***")
    assert secret not in worker.running


def test_what_a_worker_has_done_is_counted_when_it_has_ended(gate):
    with Pool(1) as pool:
        pool.submit(pow, 2, 3).result()
        with pytest.raises(ZeroDivisionError):
            pool.submit(pow, 0, -1).result()
        worker = status_inside(pool, gate, lambda: pool.submit(hold, gate.code()).result())
        status = pool.status()

    assert (worker.calls, worker.done) == (3, 2)
    assert status.workers[0].done == 3
    assert "done: 3 (2 ok, 1 error)" in str(status)


def test_a_worker_with_threads_names_all_that_it_runs_and_the_longest_time(tmp_path):
    with Pool(1, profile="thread", threads_per_worker=2) as pool:
        gates = []
        works = []
        for number, function in enumerate((stop, hold)):
            (folder := tmp_path / str(number)).mkdir()
            gates.append(Gate(folder))
            works.append(pool.session(f"s{number}").submit(function, gates[-1].code()))
            gates[-1].wait()
            if number == 0:
                time.sleep(0.3)  # so that their times differ
        (worker,) = pool.status().workers
        for each in gates:
            each.open()
        for work in works:
            work.result()

    assert sorted(worker.running.split(", ")) == ["hold", "stop"]
    assert sorted(worker.session.split(", ")) == ["s0", "s1"]
    assert worker.running_seconds >= 0.3
