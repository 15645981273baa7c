"""Workers that are replaced on purpose: by age, calls, memory and hand; reload and resize."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from snakepit_kernel import Pool, PoolClosed, SessionLost, StartFailed

PATIENCE = 20.0


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.02)


@contextmanager
def traffic(pool: Pool, clients: int = 4) -> Iterator[list[object]]:
    """Call without pause from several threads; give what the calls raised."""
    failures: list[object] = []
    is_over = threading.Event()

    def client() -> None:
        while not is_over.is_set():
            try:
                assert pool.call("nap", {"seconds": 0.005}, timeout=30) == "rested"
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def counted(pool: Pool) -> int:
    stats = pool.stats()
    outcomes = (stats.ok, stats.error, stats.cancelled, stats.timeout, stats.saturated, stats.lost)
    assert sum(outcomes) + stats.queued + stats.running == stats.submitted
    return stats.submitted


def test_workers_are_replaced_by_age_while_work_goes_on(shop, open_pool):
    """Acceptance case 24, smaller."""
    pool = open_pool(3, adapter=shop, name="gpu", max_age=1.0)
    most = 0
    with traffic(pool) as failures:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            states = [worker.state for worker in pool.status().workers]
            most = max(most, sum(state in {"ready", "busy"} for state in states))
            time.sleep(0.02)

    assert failures == []
    assert most <= 3
    assert pool.stats().recycled >= 6
    wait_until(lambda: len(pool.slots()) == 3)
    ends = pool.status().ends
    assert {end.reason for end in ends} == {"1 s old (max_age)"}
    assert not any(end.was_wanted for end in ends)
    assert pool.stats().died == 0
    counted(pool)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_are_replaced_after_so_many_calls(shop, open_pool, workers):
    """Acceptance case 25."""
    pool = open_pool(workers, adapter=shop, max_calls=5)

    pids = [pool.call("whoami", timeout=30)["pid"] for _ in range(20)]

    assert max(pids.count(pid) for pid in pids) <= 5
    wait_until(lambda: pool.stats().recycled >= 3)
    assert pool.stats().ok == 20
    wait_until(lambda: "5 calls (max_calls 5)" in {end.reason for end in pool.status().ends})


def test_futures_do_not_pass_the_number_of_calls_either(open_pool):
    pool = open_pool(2, max_calls=5)

    pids = list(pool.map(_pid, range(40)))

    assert max(pids.count(pid) for pid in set(pids)) <= 5


def test_a_worker_whose_successor_does_not_start_goes_on_after_its_last_call(shop, open_pool):
    pool = open_pool(1, adapter=shop, max_calls=2)
    (worker,) = pool.status().workers
    Path("shop.py").write_text("raise RuntimeError('burnt down')")

    for _ in range(4):
        assert pool.call("price", {"item": "tea"}, timeout=PATIENCE) == 2.5

    assert [(after.name, after.calls) for after in pool.status().workers] == [(worker.name, 4)]
    assert pool.stats().recycled == 0


def test_a_worker_whose_child_takes_too_much_memory_is_replaced(open_pool, process_of):
    """Acceptance case 26: the whole tree is measured, and the figure told."""
    pool = open_pool(1, max_memory_bytes=300 * 2**20)
    code = "import time; hog = bytearray(400 * 2**20); print('held', flush=True); time.sleep(600)"
    child = process_of(
        pool.run(
            "import subprocess, sys\n"
            f"child = subprocess.Popen([sys.executable, '-c', {code!r}], stdout=subprocess.PIPE)\n"
            "child.stdout.readline()\n"
            "child.pid"
        ).value
    )

    wait_until(lambda: pool.stats().recycled == 1)

    assert child.wait_gone(5)
    wait_until(lambda: pool.status().ends)
    (end,) = pool.status().ends
    assert "MiB of memory of its 2 processes (max_memory_bytes 314,572,800, 300 MiB)" in end.reason
    assert 300 <= int(end.reason.split()[0]) < 600  # it may have been seen while it grew
    assert pool.submit(pow, 2, 10).result(timeout=10) == 1024


def test_a_limit_below_what_a_worker_takes_by_itself_replaces_none_that_has_done_nothing(
    open_pool, caplog
):
    pool = open_pool(1, max_memory_bytes=1)

    wait_until(lambda: "before its first call" in caplog.text)
    time.sleep(2.2)  # two more looks
    assert pool.stats().recycled == 0
    assert caplog.text.count("before its first call") == 1

    pool.submit(pow, 2, 2).result()
    wait_until(lambda: pool.stats().recycled == 1)


def test_memory_that_a_worker_shares_is_not_counted(open_pool):
    pool = open_pool(1, max_memory_bytes=150 * 2**20)
    pid = pool.submit(os.getpid).result()
    # Shared by two processes, it belongs to none of them. They take it in step, because what only
    # one of them has touched would count.
    pool.run(
        "import mmap, os, time\n"
        "shared = mmap.mmap(-1, 200 * 2**20)\n"
        "(go, went), (read, wrote) = os.pipe(), os.pipe()\n"
        "if not os.fork():\n"
        "    while at := int.from_bytes(os.read(read, 4), 'little'):\n"
        "        [shared[i] for i in range(at - 2**20, at, 4096)]\n"
        "        os.write(went, b'.')\n"
        "    time.sleep(600)\n"
        "for at in range(2**20, len(shared) + 1, 2**20):\n"
        "    shared.write(b'x' * 2**20)\n"
        "    os.write(wrote, at.to_bytes(4, 'little'))\n"
        "    os.read(go, 1)\n"
    )

    wait_until(lambda: psutil.Process(pid).memory_info().rss > 200 * 2**20)
    time.sleep(2.5)  # two looks

    assert pool.submit(os.getpid).result() == pid


def test_a_worker_is_replaced_by_hand_and_its_successor_has_nothing_of_it(open_pool):
    pool = open_pool(2)
    session = pool.session("s")
    session.run("kept = 1")
    before = {worker.name for worker in pool.status().workers}

    pool.recycle()

    assert before.isdisjoint(worker.name for worker in pool.status().workers)
    assert session.run("kept").error.type_name == "NameError"
    assert pool.stats().recycled == 2
    with pytest.raises(ValueError, match=r"there is no worker 7; there are 1, 2"):
        pool.recycle(7)


def test_what_runs_on_a_worker_that_is_replaced_comes_to_its_end(shop, open_pool):
    pool = open_pool(1, adapter=shop)
    pids = [pool.call("whoami")["pid"]]
    running = pool.submit(_pid_after, 1.0)
    wait_until(running.running)

    pool.recycle(1)
    pids.append(pool.call("whoami", timeout=0.8)["pid"])  # at once: the successor is there

    assert not running.done()
    assert running.result(timeout=5) == pids[0] != pids[1]
    wait_until(lambda: not psutil.pid_exists(pids[0]))
    assert pool.stats().died == 0


def test_a_stream_goes_on_across_a_replacement(shop, open_pool):
    pool = open_pool(1, adapter=shop)

    @pool.tool
    def count(upto: int):
        yield from range(upto)

    stream = pool.stream("count", {"upto": 500}, buffer=10)
    taken = [next(stream) for _ in range(20)]
    pool.recycle(1)

    assert taken + list(stream) == list(range(500))


def test_a_strict_session_keeps_its_home_past_age_and_calls_and_is_told_when_it_is_taken(
    shop, open_pool
):
    pool = open_pool(2, adapter=shop, max_calls=5, max_age=0.5)
    session = pool.session("bound", affinity="strict_queue")
    pids = {session.call("whoami")["pid"] for _ in range(12)}
    time.sleep(1.2)
    pids.add(session.call("whoami")["pid"])
    assert len(pids) == 1

    home = session.call("whoami")["worker"]
    pool.recycle(int(home.rpartition("-")[2].partition(".")[0]))

    with pytest.raises(SessionLost, match=r"has ended \(recycled by hand\)"):
        session.call("whoami")


# -- reload ----------------------------------------------------------------------------------------


def test_reload_brings_new_tools_and_no_call_fails(shop, open_pool):
    pool = open_pool(2, adapter=shop)
    source = Path("shop.py").read_text()
    with traffic(pool) as failures:
        Path("shop.py").write_text(source.replace("2.5 * amount", "3.5 * amount"))
        pool.reload()
        assert pool.call("price", {"item": "tea"}) == 3.5
        Path("other.py").write_text(source.replace("def price", "def cost"))
        pool.reload("other:Shop")
        assert pool.call("cost", {"item": "tea"}) == 2.5

    assert failures == []
    assert pool.stats().recycled == 4
    assert "price" not in pool.tool_names()
    assert pool.status().adapter == "other:Shop"


def test_a_reload_that_cannot_start_changes_nothing(shop, open_pool):
    pool = open_pool(2, adapter=shop)
    before = [worker.name for worker in pool.status().workers]

    with pytest.raises(StartFailed, match="no_such_module"):
        pool.reload("no_such_module:Shop")
    with pytest.raises(TypeError, match="adapter must be"):
        pool.reload(3)

    assert [worker.name for worker in pool.status().workers] == before
    assert pool.call("price", {"item": "tea"}) == 2.5
    pool.recycle(1)
    assert pool.call("price", {"item": "tea"}) == 2.5


# -- resize, drain ---------------------------------------------------------------------------------


def test_a_pool_grows_and_shrinks_while_work_goes_on(shop, open_pool):
    pool = open_pool(1, adapter=shop)
    with traffic(pool) as failures:
        pool.resize(4)
        assert pool.slots() == [1, 2, 3, 4]
        wait_until(lambda: all(worker.calls for worker in pool.status().workers))
        pids = {worker.pid for worker in pool.status().workers}
        pool.resize(2)
        assert len(pool.slots()) == 2
        kept = {worker.pid for worker in pool.status().workers}
        wait_until(lambda: not any(map(psutil.pid_exists, pids - kept)))

    assert failures == []
    assert "2 workers" in repr(pool)
    assert pool.stats().died == 0


def test_shrinking_keeps_the_homes_of_strict_sessions(open_pool):
    pool = open_pool(3)
    session = pool.session("bound", affinity="strict_queue")
    first = pool.submit(time.sleep, 0.3), pool.submit(time.sleep, 0.3)  # 1 and 2 are busy
    pid = session.submit(os.getpid).result()
    for future in first:
        future.result()

    pool.resize(1)

    assert session.submit(os.getpid).result() == pid


@pytest.mark.parametrize(("count", "error"), [(0, ValueError), (151, ValueError), ("2", TypeError)])
def test_a_size_that_cannot_be_is_refused(open_pool, count, error):
    pool = open_pool()

    with pytest.raises(error, match="workers must be"):
        pool.resize(count)


def test_a_pool_that_cannot_grow_stays_as_it_is(shop, open_pool):
    pool = open_pool(1, adapter=shop)
    source = Path("shop.py").read_text()
    Path("shop.py").write_text("raise RuntimeError('burnt down')")

    with pytest.raises(StartFailed, match="burnt down"):
        pool.resize(3)

    assert pool.slots() == [1]
    Path("shop.py").write_text(source)
    assert pool.call("price", {"item": "tea"}) == 2.5


def test_a_drained_pool_ends_its_work_and_takes_more_when_it_is_resumed(open_pool):
    pool = open_pool(1)
    futures = [pool.submit(_pid_after, 0.3) for _ in range(3)]

    assert pool.drain(timeout=0.1) is False
    with pytest.raises(PoolClosed, match="it is draining, and takes no new work until resume"):
        pool.submit(pow, 2, 2)
    assert "it is draining" in pool.status().problem
    assert pool.drain(timeout=20) is True
    assert all(future.done() for future in futures)

    pool.resume()
    assert pool.status().problem is None
    assert pool.submit(pow, 2, 2).result() == 4


def test_a_pool_that_has_ended_cannot_be_changed(open_pool):
    pool = open_pool()
    pool.shutdown()

    for change in (lambda: pool.resize(2), pool.reload, pool.recycle, pool.resume):
        with pytest.raises(PoolClosed):
            change()


def _pid(_: object) -> int:
    return os.getpid()


def _pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


for _item in (_pid, _pid_after):
    _item.__module__ = "__main__"  # by value: this module is no module of the workers
