"""Watching variables: every change, once, in order, whoever makes it; and an end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import queue
import resource
import threading
import time

import pytest

from snakepit_kernel.errors import SessionNotFound
from snakepit_kernel.sessions.state import open_session
from snakepit_kernel.sessions.watch import Watch


def hub_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "snakepit-watch"]


def wait_for_threads_to_end(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture
def numbered(session):
    session.variables.register("n", "integer", 0)
    return session


def test_each_change_is_told_with_what_it_was(numbered):
    v = numbered.variables
    with v.watch() as watch:
        v["n"] = 1
        v.rollback("n", 1)
        v.register("m", "string", "x")
        told = [watch.get(5) for _ in range(3)]
        v.delete("m")
        told.append(watch.get(5))
    assert [(c.name, c.kind, c.version, c.value) for c in told] == [
        ("n", "updated", 2, 1),
        ("n", "rolled back", 3, 0),
        ("m", "registered", 1, "x"),
        ("m", "deleted", 2, None),
    ]
    assert [c.revision for c in told] == sorted(c.revision for c in told)
    assert {c.source for c in told} == {"script"}


def test_what_was_before_the_watch_is_not_told(numbered):
    numbered.variables["n"] = 1
    with numbered.variables.watch() as watch, pytest.raises(TimeoutError, match="within 0.01 s"):
        watch.get(0.01)


def test_only_what_matches_the_pattern_is_told_and_of_this_session_only(numbered, store):
    other = open_session("other", store=store)
    other.variables.register("temp", "integer", 0)
    numbered.variables.register("temp", "integer", 0)
    with numbered.variables.watch("te*") as watch:
        numbered.variables["n"] = 1
        other.variables["temp"] = 2
        numbered.variables["temp"] = 3
        assert watch.get(5).value == 3
        with pytest.raises(TimeoutError):
            watch.get(0.01)


def test_a_loop_over_a_watch_ends_when_it_is_closed(numbered):
    watch = numbered.variables.watch()
    seen: queue.Queue[int] = queue.Queue()

    def follow() -> None:
        for change in watch:
            seen.put(change.value)

    follower = threading.Thread(target=follow)
    follower.start()
    numbered.variables["n"] = 1
    assert seen.get(timeout=5) == 1

    watch.close()
    follower.join(5)

    assert not follower.is_alive()
    with pytest.raises(ValueError, match="closed"):
        watch.get()


def test_closing_wakes_who_waits_at_once(numbered):
    watch = numbered.variables.watch()
    waiting = threading.Thread(target=lambda: list(watch))
    waiting.start()
    watch.close()
    waiting.join(10)
    assert not waiting.is_alive()


def test_an_async_loop_gets_changes_and_ends_when_the_watch_is_closed(numbered):
    async def scenario() -> list[int]:
        watch = numbered.variables.watch("n")
        seen = []

        async def follow() -> None:
            async for change in watch:
                seen.append(change.value)
                if change.value == 1:
                    await asyncio.to_thread(numbered.variables.set, "n", 2)
                if change.value == 2:
                    asyncio.get_running_loop().call_soon(watch.close)

        numbered.variables["n"] = 1
        await asyncio.wait_for(follow(), 5)
        return seen

    assert asyncio.run(scenario()) == [1, 2]


def test_a_watch_that_was_followed_in_a_loop_of_events_can_be_followed_without(numbered):
    async def first(watch: Watch) -> int:
        async for change in watch:
            return change.value
        return -1

    with numbered.variables.watch() as watch:
        numbered.variables["n"] = 1
        assert asyncio.run(first(watch)) == 1
        got: queue.Queue[int] = queue.Queue()
        waiting = threading.Thread(target=lambda: got.put(watch.get(10).value))
        waiting.start()
        began = time.monotonic()
        numbered.variables["n"] = 2
        assert got.get(timeout=5) == 2
        assert time.monotonic() - began < 2
        waiting.join()


def test_a_function_is_called_with_each_change_also_after_one_that_failed(numbered, caplog):
    seen: queue.Queue[int] = queue.Queue()

    def note(change) -> None:
        seen.put(change.value)
        if change.value == 1:
            raise RuntimeError("mine")

    watch = numbered.variables.watch("n", note)
    for number in (1, 2, 3):
        numbered.variables["n"] = number
    assert [seen.get(timeout=5) for _ in range(3)] == [1, 2, 3]
    watch.close()
    wait_for_threads_to_end("snakepit-callback")
    (record,) = [item for item in caplog.records if item.levelno >= logging.WARNING]
    assert "a watcher of 'n' failed" in record.getMessage()


WRITE = """
for number in range(45):  # of both together as many as are kept: who reads may be late
    session.variables["n"] = int(sys.argv[2]) * 1000 + number
"""


def test_changes_of_several_processes_are_all_told_once_and_in_order(numbered, beside):
    writers = [beside(WRITE, number) for number in (1, 2)]
    with numbered.variables.watch("n") as watch:
        for writer in writers:
            writer.stdin.write("\n")
            writer.stdin.flush()
        told = [watch.get(20) for _ in range(90)]
        with pytest.raises(TimeoutError):
            watch.get(0.05)
    for number in (1, 2):
        mine = [change.value for change in told if change.value // 1000 == number]
        assert mine == [number * 1000 + step for step in range(45)]
    assert [change.version for change in told] == [*range(2, 92)]
    assert all(writer.wait(10) == 0 for writer in writers)


def test_a_change_of_another_process_is_told_soon(numbered, beside):
    writer = beside("session.variables['n'] = 7\nprint('done', flush=True)\nsys.stdin.read()")
    with numbered.variables.watch("n") as watch:
        writer.stdin.write("\n")
        writer.stdin.flush()
        assert watch.get(5).value == 7


def test_a_watch_of_a_session_that_is_deleted_ends_with_that(numbered, store, caplog):
    caplog.set_level(logging.INFO)
    other = open_session("s", store=store)
    watch = other.variables.watch()
    called = other.variables.watch("*", lambda change: None)
    numbered.delete()
    with pytest.raises(SessionNotFound):
        watch.get(5)
    wait_for_threads_to_end("snakepit-callback")
    assert "ends" in caplog.text
    assert repr(called) == "<Watch of '*', closed>"
    watch.close()
    wait_for_threads_to_end("snakepit-watch")


def test_a_watch_goes_on_when_the_file_was_lost_and_made_anew(store, numbered):
    with numbered.variables.watch() as watch:
        for suffix in ("", "-wal", "-shm"):
            store.path.with_name(store.path.name + suffix).unlink()
        again = open_session("s", store=store)
        again.variables.register("n", "integer", 5)
        with pytest.raises(TimeoutError):
            watch.get(0.05)  # it is another session
        with again.variables.watch() as second:
            again.variables["n"] = 6
            assert second.get(5).value == 6


def test_the_thread_that_tells_ends_with_the_last_watch_and_no_descriptor_is_left(numbered):
    gc.collect()
    first = numbered.variables.watch()
    before = len(os.listdir("/proc/self/fd"))
    watches = [numbered.variables.watch() for _ in range(200)]
    assert len(hub_threads()) == 1
    assert len(os.listdir("/proc/self/fd")) < before + 5  # the thread has a few
    for watch in watches:
        watch.close()
    assert len(hub_threads()) == 1
    first.close()
    wait_for_threads_to_end("snakepit-watch")
    for _ in range(200):
        numbered.variables.watch().close()
    wait_for_threads_to_end("snakepit-watch")
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_watch_that_nobody_holds_is_forgotten(numbered):
    watch = numbered.variables.watch()
    assert hub_threads()
    del watch
    gc.collect()
    wait_for_threads_to_end("snakepit-watch")


def test_changes_are_told_also_to_a_process_with_very_many_files_open(numbered):
    """select() knows no descriptors from 1024 on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        with numbered.variables.watch() as watch:
            numbered.variables["n"] = 1
            assert watch.get(5).value == 1
            assert all(thread.is_alive() for thread in hub_threads())
            assert hub_threads()
        wait_for_threads_to_end("snakepit-watch")
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_forked_child_gets_the_changes_of_a_watch_that_it_inherited(numbered):
    with numbered.variables.watch() as watch:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(TimeoutError):
                watch.get(0.01)
            os.write(writing, b"waits ")
            began = time.monotonic()
            change = watch.get(8)
            os.write(writing, f"{change.value} {time.monotonic() - began < 4}".encode())
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as file:
            assert file.read(6) == b"waits "
            time.sleep(0.2)  # until it does: nothing tells
            numbered.variables["n"] = 4
            assert file.read() == b"4 True"
        os.waitpid(child, 0)


def test_a_slow_follower_gets_what_the_history_holds(numbered):
    with numbered.variables.watch() as watch:
        for number in range(1, 251):
            numbered.variables["n"] = number
        told = []
        while not told or told[-1] != 250:
            told.append(watch.get(5).value)
    assert told == sorted(told)
    assert len(told) >= 100
