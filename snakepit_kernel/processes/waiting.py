"""Waiting for file descriptors from asyncio, without keeping anything of the loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

from .identity import ProcessIdentity

T = TypeVar("T")


async def readable(descriptor: int, timeout: float | None = None) -> bool:
    """Wait until a file descriptor is readable; say whether it was before the timeout.

    Nothing is kept between calls, so each may run in another event loop: jupyter_client runs a
    provisioner's coroutines in whatever loop is at hand. The descriptor is duplicated for the
    wait, so that several tasks can wait for the same one.

    Parameters
    ----------
    descriptor
        An open file descriptor. It is not read.
    timeout
        Seconds to wait at most; None waits for ever.
    """
    loop = asyncio.get_running_loop()
    own = os.dup(descriptor)
    event = asyncio.Event()
    loop.add_reader(own, event.set)
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(own)
        os.close(own)
    return True


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine that must not be left half done; a cancellation waits until it is over."""
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
    """Wait until a process, no matter whose child, has ended; say whether it has."""
    pidfd = process.open()
    if pidfd is None:
        return True
    try:
        return await readable(pidfd, timeout)
    finally:
        os.close(pidfd)
