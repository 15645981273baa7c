"""A worker's end of a lane that several threads and signal handlers read."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from snakepit_kernel.lane.marshalling import Marshaller
from snakepit_kernel.lane.worker_end import WorkerLane
from snakepit_kernel.protocol.frames import Frame, pack


class ServedLane:
    """A lane that its own thread serves, and its owner's socket."""

    def __init__(self) -> None:
        self.owner, end = socket.socketpair()
        self.arrived = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.lane = WorkerLane(end, Marshaller(None, None), self.note, self.loop.stop)
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        self.lane.attach(self.loop)
        self.loop.run_forever()
        self.loop.close()

    def note(self, _frame: Frame) -> None:
        self.arrived.set()

    def send(self) -> None:
        self.owner.sendall(b"".join(pack(b"frame")))

    def close(self) -> None:
        self.owner.close()
        self.thread.join(10)
        assert not self.thread.is_alive()


class InterleavedLock:
    """A lock that runs a function before each attempt to acquire it, or after each release."""

    def __init__(self, **at: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._at = at
        self.locked = self._lock.locked

    def acquire(self, blocking: bool) -> bool:
        self._at.get("acquire", _nothing)()
        return self._lock.acquire(blocking)

    def release(self) -> None:
        self._lock.release()
        self._at.get("release", _nothing)()


def _nothing() -> None:
    pass


@pytest.fixture
def served() -> Iterator[ServedLane]:
    lane = ServedLane()
    yield lane
    lane.close()


def test_a_frame_that_a_signal_handler_has_read_is_not_left_when_the_thread_looks_meanwhile(served):
    """The thread finds no bytes, and goes to sleep; the handler found it reading, and went away."""
    lane = served.lane
    is_looking, is_over = threading.Event(), threading.Event()
    receive = lane._recv_now

    def receive_slowly(view: memoryview) -> int:
        if threading.current_thread() is served.thread:
            is_looking.set()
            is_over.wait(5)
        return receive(view)

    def have_thread_look() -> None:
        if threading.current_thread() is not served.thread and not is_looking.is_set():
            served.loop.call_soon_threadsafe(lane._on_readable)
            is_looking.wait(5)

    asyncio.run_coroutine_threadsafe(_stop_reading(served), served.loop).result(5)
    lane._recv_now = receive_slowly
    lane._reading = InterleavedLock(release=have_thread_look)
    served.send()
    lane.handle_arrived(served.note)
    is_over.set()
    assert served.arrived.wait(5)


async def _stop_reading(served: ServedLane) -> None:
    """Have the loop not look by itself, so that the test says when."""
    number = served.lane._socket.fileno()
    served.loop.remove_reader(number)
    served.loop.call_later(1, served.loop.add_reader, number, served.lane._on_readable)


def test_a_call_that_is_handed_over_is_begun_by_a_thread_that_is_about_to_read(served):
    begun = threading.Event()
    is_handed_over = threading.Event()

    def hand_over() -> None:
        if threading.current_thread() is served.thread and not is_handed_over.is_set():
            is_handed_over.set()
            served.lane.run_in_own_thread(begun.set)

    def wait() -> None:
        served.lane._reading = InterleavedLock(acquire=hand_over)
        served.lane.wait(begun.is_set)

    served.loop.call_soon_threadsafe(wait)
    assert begun.wait(5)
