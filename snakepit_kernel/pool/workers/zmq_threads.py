"""The threads of a ZeroMQ context, begun while there is room for them.

libzmq starts them with the first socket, and aborts the whole process where it cannot: where the
user has as many processes and threads as they may have.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import zmq

THREADS = 2
"""Threads of a context: one for input and output, and one that closes sockets."""

EXIT_PATIENCE = 1.0
"""Seconds that a thread which has ended may still count as one."""


def start_threads(context: zmq.Context[Any]) -> None:
    """Have a context start its threads, if as many can be started.

    Raises
    ------
    RuntimeError
        There is no room for them.
    """
    gate = threading.Event()
    tried: list[threading.Thread] = []
    try:
        for _ in range(THREADS):
            thread = threading.Thread(target=gate.wait, name="snakepit-room", daemon=True)
            thread.start()
            tried.append(thread)
    finally:
        gate.set()
        for thread in tried:
            thread.join()
    _await_exit({thread.native_id for thread in tried})
    context.socket(zmq.PAIR).close(linger=0)


def _await_exit(threads: set[int | None]) -> None:
    """Wait until threads are gone: one that was joined still counts for a moment, and says not."""
    until = time.monotonic() + EXIT_PATIENCE
    while any(os.path.exists(f"/proc/self/task/{number}") for number in threads):  # noqa: PTH110
        if time.monotonic() > until:
            return
        time.sleep(0)
