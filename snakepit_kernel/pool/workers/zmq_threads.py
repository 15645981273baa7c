"""Starts the threads of a ZeroMQ context, after checking that threads can be started.

libzmq starts them with the first socket, and aborts the whole process when it cannot, which happens
when the user has reached the limit of processes and threads.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import zmq

THREADS = 2
"""Threads of a context: an I/O thread, and the reaper, which closes sockets."""

EXIT_PATIENCE = 1.0
"""Seconds for which a thread that has ended may still count towards the limit."""


def start_threads(context: zmq.Context[Any]) -> None:
    """Start the threads of a context, if that many can be started.

    Raises
    ------
    RuntimeError
        The limit of threads is reached.
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
    """Wait until threads are gone: a joined one still counts towards the limit for a moment."""
    until = time.monotonic() + EXIT_PATIENCE
    while any(os.path.exists(f"/proc/self/task/{number}") for number in threads):  # noqa: PTH110
        if time.monotonic() > until:
            return
        time.sleep(0)
