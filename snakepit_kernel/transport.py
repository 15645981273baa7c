"""Transports of a kernel's Jupyter channels: Unix sockets, encrypted TCP or plain TCP.

Over plain TCP each user of the machine can connect: messages are signed, so no other user can send
requests, but every subscriber to the output reads code and results. Unix sockets (ipc) in a private
folder, and CurveZMQ encryption, keep other users out.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from .files import read_json

KERNEL_MODULE = "snakepit_kernel.kernel"
"""Module in the commands of kernels that can be forked from a template."""

IPYKERNEL_MODULES = frozenset({"ipykernel_launcher", "ipykernel"})

TRANSPORT_VARIABLE = "SNAKEPIT_TRANSPORT"
"""Environment variable with the default transport of kernels."""


class Transport(StrEnum):
    """A configured transport."""

    AUTO = "auto"
    """Ipc, else encrypted, else plain TCP: the first that kernel and client support."""
    IPC = "ipc"
    CURVE = "curve"
    TCP = "tcp"


class Reached(StrEnum):
    """The transport of a running kernel."""

    IPC = "ipc"
    ENCRYPTED = "tcp, encrypted"
    PLAIN = "tcp, not encrypted"
    UNKNOWN = ""


def module_of(argv: Sequence[str]) -> str:
    """Return the module that a command line runs, or an empty string."""
    if "-m" not in argv[:-1]:
        return ""
    return argv[argv.index("-m") + 1]


def is_ipythons(argv: Sequence[str]) -> bool:
    """Whether a command line runs IPython's kernel, or ours."""
    return module_of(argv) in (KERNEL_MODULE, *IPYKERNEL_MODULES)


def choose(wanted: Transport, manager: Any) -> Transport:
    """Choose the transport of a kernel.

    Parameters
    ----------
    wanted
        The transport configured for its provisioner.
    manager
        Its `jupyter_client.KernelManager`, before it has written a connection file.

    Returns
    -------
    Transport
        Not ``AUTO``. The manager's configuration has priority: configured ``ipc``, encryption,
        ports and addresses are respected.
    """
    if manager.transport == Transport.IPC:
        return Transport.IPC
    if _policy(manager) != "disabled":
        return Transport.CURVE
    if wanted is not Transport.AUTO:
        return wanted
    if _is_configured(manager, "transport"):
        return Transport.TCP
    spec = manager.kernel_spec
    if not _has_chosen_address(manager) and is_ipythons(spec.argv):
        return Transport.IPC
    return Transport.CURVE if can_encrypt(manager) else Transport.TCP


def can_encrypt(manager: Any) -> bool:
    """Whether a manager and its kernel support CurveZMQ."""
    if not hasattr(manager, "transport_encryption") or _is_configured(
        manager, "transport_encryption"
    ):
        return False
    declared = manager.kernel_spec.metadata.get("supported_encryption") or ()
    return "curve" in ([declared] if isinstance(declared, str) else declared)


def _policy(manager: Any) -> str:
    return str(getattr(manager, "transport_encryption", "disabled")).lower()


def _has_chosen_address(manager: Any) -> bool:
    """Whether a manager's address or ports are configured."""
    return manager.ip not in {"127.0.0.1", "localhost", "::1"} or any(manager.ports)


def _is_configured(manager: Any, trait: str) -> bool:
    """Whether a trait of a manager is configured."""
    return any(trait in manager.config.get(cls.__name__, {}) for cls in type(manager).__mro__)


def reached(connection_file: str | Path) -> Reached:
    """Return the transport of a kernel, read from its connection file."""
    try:
        info = read_json(Path(connection_file))
    except (OSError, ValueError):
        return Reached.UNKNOWN
    if not isinstance(info, dict):
        return Reached.UNKNOWN
    if info.get("transport") == Transport.IPC:
        return Reached.IPC
    return Reached.ENCRYPTED if info.get("curve_publickey") else Reached.PLAIN
