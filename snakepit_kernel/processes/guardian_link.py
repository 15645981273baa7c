"""The kernel's end of its link to the guardian: it reports readiness and requests a template."""

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
FORK_TEMPLATE = b"template"
ASSIGN = b"assign"


class _Link:
    """The kernel's end of the link.

    Attributes
    ----------
    descriptor
        File descriptor; -1 where no guardian listens.
    imported_with
        Environment variables with which a template forked by the guardian has imported its modules;
        None when the guardian cannot fork one.
    """

    def __init__(self) -> None:
        self.descriptor = -1
        self.imported_with: Mapping[str, str] | None = None

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.__init__()  # type: ignore[misc]


_link = _Link()


def attach(descriptor: int, imported_with: Mapping[str, str] | None) -> None:
    """Store the kernel's end, in the kernel."""
    os.set_inheritable(descriptor, False)
    _link.descriptor = descriptor
    _link.imported_with = imported_with


def attach_inherited() -> None:
    """Store the descriptor that a guardian passed to this process when it executed it, if any."""
    descriptor = os.environ.pop(READY_VARIABLE, "")
    if descriptor.isdecimal():
        attach(int(descriptor), None)


def report_ready() -> None:
    """Report to the guardian, and through it to the owner, that this kernel accepts requests."""
    if _link.descriptor >= 0:
        os.write(_link.descriptor, READY)


def has_message(timeout: float) -> bool:
    """Wait some seconds for a message from the guardian; return whether there is one."""
    poll = select.poll()
    poll.register(_link.descriptor, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def wait_for_assignment() -> dict[str, Any]:
    """Wait, in a standby kernel, for its assignment."""
    with socket.socket(fileno=os.dup(_link.descriptor)) as link:
        word, descriptors, _, _ = socket.recv_fds(link, 64, 1)
    if word != ASSIGN:
        sys.exit(1)  # the guardian is gone
    (descriptor,) = descriptors
    with open(descriptor, "rb") as file:  # noqa: PTH123
        file.seek(0)
        assignment: dict[str, Any] = json.load(file)
    return assignment


def report_failure(error: OSError) -> None:
    """Report to the guardian that this kernel cannot apply its assignment."""
    os.write(_link.descriptor, f"failed\t{error.errno}\t{error.filename}".encode()[:1024])


def ask_for_template(channel: socket.socket, variables: Mapping[str, str]) -> bool:
    """Ask the guardian to fork a template next to this kernel; return whether it was asked.

    Parameters
    ----------
    channel
        The template's end of its channel. It is closed when nothing could be forked.
    variables
        Environment variables with which its modules must have been imported.
    """
    if _link.imported_with is None or variables != _link.imported_with:
        return False
    with socket.socket(fileno=os.dup(_link.descriptor)) as link:
        try:
            socket.send_fds(link, [FORK_TEMPLATE], [channel.fileno()])
        except OSError:
            return False
    return True


os.register_at_fork(after_in_child=_link.close)
