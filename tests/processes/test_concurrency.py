"""The thread of an event loop, and what ends it after an interrupt in its start."""

from __future__ import annotations

import threading

import pytest

from snakepit_kernel.processes.concurrency import LoopThread


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_one_that_was_never_started_is_closed():
    LoopThread("of-a-test").close()

    assert "of-a-test" not in names()


def test_one_that_was_interrupted_while_it_started_ends(monkeypatch):
    loop_thread = LoopThread("of-a-test")
    started = loop_thread._thread._started  # what `Thread.start` waits for
    monkeypatch.setattr(started, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop_thread.start()
    monkeypatch.undo()

    loop_thread.close()
    loop_thread.close()

    assert "of-a-test" not in names()


def test_one_that_was_interrupted_before_it_had_a_thread_is_closed(monkeypatch):
    loop_thread = LoopThread("of-a-test")
    monkeypatch.setattr(loop_thread._thread, "start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop_thread.start()

    loop_thread.close()

    assert loop_thread._loop.is_closed()
