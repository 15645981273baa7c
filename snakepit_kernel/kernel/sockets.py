"""Protection of the kernel's Jupyter sockets from other users and from forked children.

As long as a child that inherited them lives, the port stays in use, and a client does not notice
that the kernel is gone, because its connection stays open.
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
    """ipykernel's heartbeat, which binds its socket in its own thread, with a private socket."""

    def _try_bind_socket(self) -> Any:
        bound = super()._try_bind_socket()
        if self.transport == "ipc":
            make_private(f"{self.ip}-{self.port}")
        return bound


def make_private(address: str) -> None:
    """Remove other users' access to a Unix socket: ZeroMQ leaves what the umask allows."""
    with contextlib.suppress(FileNotFoundError):  # the run ended meanwhile
        os.chmod(address, PRIVATE)  # noqa: PTH101


def release_in_children(addresses: Collection[int | str]) -> None:
    """Close some sockets in every child that this process forks from now on.

    Parameters
    ----------
    addresses
        Addresses to which they are bound: network ports, or paths of Unix sockets.
    """
    os.register_at_fork(after_in_child=lambda: _release(addresses))


def _release(addresses: Collection[int | str]) -> None:
    # ZeroMQ does not expose its descriptors, and opens more as clients connect. It still uses their
    # numbers in the child, so they are replaced by /dev/null and not closed.
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
    except OSError:  # the descriptor of the listing; an address family that Python does not know
        return False
    try:
        name = found.getsockname()  # also for accepted connections
    except OSError:
        return False
    finally:
        found.detach()
    return (name[1] if isinstance(name, tuple) else name) in addresses
