"""Waiting for file descriptors and processes, without state in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from ..locks import Lock
from . import pidfd
from .identity import ProcessIdentity

T = TypeVar("T")

POLL_INTERVAL = 0.02
"""Seconds between checks of a process where there are no pidfds."""


async def readable(*descriptors: int, timeout: float | None = None) -> bool:
    """Wait until a file descriptor is readable; return False after the timeout.

    Nothing is kept between calls, so each may run in another event loop: jupyter_client runs a
    provisioner's coroutines in whichever loop it has. The descriptors are duplicated for the wait,
    so that several tasks can wait for the same one.

    Parameters
    ----------
    descriptors
        Open file descriptors. They are not read.
    timeout
        Seconds to wait at most; None waits for ever.
    """
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    own = [os.dup(descriptor) for descriptor in descriptors]
    for descriptor in own:
        loop.add_reader(descriptor, event.set)
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return False
    finally:
        for descriptor in own:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    return True


async def run_shielded(work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine to its end; a cancellation is raised only afterwards."""
    task = asyncio.get_running_loop().create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return task.result()


async def ended(process: ProcessIdentity, timeout: float | None = None) -> bool:
    """Wait until a process, not only a child of ours, has ended; return False after the timeout."""
    descriptor = exit_descriptor(process)
    if descriptor is None:
        return True
    try:
        return await readable(descriptor, timeout=timeout)
    finally:
        os.close(descriptor)


def exit_descriptor(process: ProcessIdentity) -> int | None:
    """Return a file descriptor that is readable once a process has ended; None if it has already.

    It is a pidfd. Where there are none, it is a pipe, and a thread checks the process fifty times a
    second. The caller closes it.
    """
    if pidfd.is_possible():
        return process.open()
    return _exit_watch.watch(process) if process.is_alive() else None


class _ExitWatch:
    """A thread that polls processes, and writes into a pipe when one has ended."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._watched: dict[int, ProcessIdentity] = {}  # by the end of the pipe that is written
        os.register_at_fork(after_in_child=self._forget)

    def watch(self, process: ProcessIdentity) -> int:
        read, write = os.pipe()
        with self._lock:
            self._watched[write] = process
            if len(self._watched) == 1:
                threading.Thread(target=self._look, name="snakepit-lookout", daemon=True).start()
        return read

    def _look(self) -> None:
        poll = select.poll()
        while True:
            time.sleep(POLL_INTERVAL)
            with self._lock:
                for write, process in list(self._watched.items()):
                    poll.register(write, 0)
                    abandoned = write in dict(poll.poll(0))  # the reading end is closed: an error
                    poll.unregister(write)
                    if abandoned or not process.is_alive():
                        with contextlib.suppress(BrokenPipeError):
                            os.write(write, b".")
                        os.close(write)
                        del self._watched[write]
                if not self._watched:
                    return

    def _forget(self) -> None:
        """In a forked child, which has no such thread: close the parent's pipes."""
        for write in self._watched:
            os.close(write)
        self._watched.clear()
        self._lock = Lock()


_exit_watch = _ExitWatch()
