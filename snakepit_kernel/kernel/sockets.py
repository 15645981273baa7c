"""The kernel's Jupyter sockets: nobody else may enter them, and no forked child may hold them.

As long as a child that inherited them lives, the port is taken, and a client does not see that the
kernel has gone, because its connection stays open.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Collection
from typing import Any

from ipykernel.heartbeat import Heartbeat

from ..files import PRIVATE


class PrivateHeartbeat(Heartbeat):
    """ipykernel's heartbeat, which binds its socket in a thread of its own; it is ours alone."""

    def _try_bind_socket(self) -> Any:
        bound = super()._try_bind_socket()
        if self.transport == "ipc":
            close_to_others(f"{self.ip}-{self.port}")
        return bound


def close_to_others(address: str) -> None:
    """Take from others the rights to a Unix socket: ZeroMQ leaves them what the umask does."""
    with contextlib.suppress(FileNotFoundError):  # the run ended meanwhile
        os.chmod(address, PRIVATE)  # noqa: PTH101


def release_in_children(addresses: Collection[int | str]) -> None:
    """Take certain sockets from every child that this process forks from now on.

    Parameters
    ----------
    addresses
        Where they are bound: ports of the network, or paths of Unix sockets.
    """
    os.register_at_fork(after_in_child=lambda: _release(addresses))


def _release(addresses: Collection[int | str]) -> None:
    # ZeroMQ does not tell which descriptors it has, and opens them as clients come. It still knows
    # the numbers, so something harmless takes the place.
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        if _is_bound_to(number, addresses):
            os.dup2(null, number, inheritable=False)
    os.close(null)


def _is_bound_to(descriptor: int, addresses: Collection[int | str]) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return False
        found = socket.socket(fileno=descriptor)
    except OSError:  # the one that listed the others; a family that Python does not know
        return False
    try:
        name = found.getsockname()  # of a listener, and of what it accepted
    except OSError:
        return False
    finally:
        found.detach()
    return (name[1] if isinstance(name, tuple) else name) in addresses
