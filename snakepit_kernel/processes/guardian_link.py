"""The way from a kernel to its guardian: it says that it is ready, and asks for a template."""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from collections.abc import Mapping
from typing import Any

from .guardian import READY_VARIABLE

READY = b"ready"
BRANCH = b"branch"
PLACE = b"place"


class _Link:
    """The kernel's end.

    Attributes
    ----------
    descriptor
        File descriptor; -1 where there is no guardian that listens.
    imported_with
        The variables under which the modules were imported that a template of the guardian has;
        None when it cannot fork any.
    """

    def __init__(self) -> None:
        self.descriptor = -1
        self.imported_with: Mapping[str, str] | None = None

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.__init__()  # type: ignore[misc]


_link = _Link()


def hold(descriptor: int, imported_with: Mapping[str, str] | None) -> None:
    """Take over the kernel's end, in the kernel."""
    os.set_inheritable(descriptor, False)
    _link.descriptor = descriptor
    _link.imported_with = imported_with


def hold_inherited() -> None:
    """Take over what a guardian has left to a command that it executed, if that is us."""
    descriptor = os.environ.pop(READY_VARIABLE, "")
    if descriptor.isdecimal():
        hold(int(descriptor), None)


def say_ready() -> None:
    """Tell the guardian, and by it the owner, that requests are taken."""
    if _link.descriptor >= 0:
        os.write(_link.descriptor, READY)


def is_called(timeout: float) -> bool:
    """Wait for some seconds whether the guardian has something to say; say whether it has."""
    poll = select.poll()
    poll.register(_link.descriptor, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def wait_for_place() -> dict[str, Any]:
    """Wait, in a kernel that is kept ready, to be told what it is to be."""
    with socket.socket(fileno=os.dup(_link.descriptor)) as link:
        word, descriptors, _, _ = socket.recv_fds(link, 64, 1)
    if word != PLACE:
        sys.exit(1)  # the guardian is gone
    (descriptor,) = descriptors
    with open(descriptor, "rb") as file:  # noqa: PTH123
        file.seek(0)
        place: dict[str, Any] = json.load(file)
    return place


def report_failure(error: OSError) -> None:
    """Tell the guardian that this kernel cannot be what it is to be."""
    os.write(_link.descriptor, f"failed\t{error.errno}\t{error.filename}".encode()[:1024])


def ask_for_template(channel: socket.socket, variables: Mapping[str, str]) -> bool:
    """Ask the guardian to fork a template beside this kernel; say whether it was asked.

    Parameters
    ----------
    channel
        The template's end of its channel. It is closed when nothing could be forked.
    variables
        Under which its modules are to have been imported.
    """
    if _link.imported_with is None or variables != _link.imported_with:
        return False
    with socket.socket(fileno=os.dup(_link.descriptor)) as link:
        try:
            socket.send_fds(link, [BRANCH], [channel.fileno()])
        except OSError:
            return False
    return True


os.register_at_fork(after_in_child=_link.close)
