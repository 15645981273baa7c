"""How clients reach a kernel's Jupyter channels.

Over TCP each user of the machine can connect to them: messages are signed, so nobody else can give
the kernel work, but whoever subscribes to the output reads code and results. Unix sockets (ipc) in
a private folder, and CurveZMQ encryption, keep others out.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from .files import read_json

KERNEL_MODULE = "snakepit_kernel.kernel"
"""What the commands of kernels run that can be forked from a template."""

IPYKERNEL_MODULES = frozenset({"ipykernel_launcher", "ipykernel"})

TRANSPORT_VARIABLE = "SNAKEPIT_TRANSPORT"
"""Environment variable that says how kernels are reached where no configuration does."""


class Transport(StrEnum):
    """How kernels are to be reached."""

    AUTO = "auto"
    """By ipc, else encrypted, else over plain TCP: the first that kernel and client can do."""
    IPC = "ipc"
    CURVE = "curve"
    TCP = "tcp"


class Reached(StrEnum):
    """How a kernel is reached."""

    IPC = "ipc"
    ENCRYPTED = "tcp, encrypted"
    PLAIN = "tcp, not encrypted"
    UNKNOWN = ""


def module_of(argv: Sequence[str]) -> str:
    """Return the module that a command line runs, or nothing."""
    if "-m" not in argv[:-1]:
        return ""
    return argv[argv.index("-m") + 1]


def is_ipythons(argv: Sequence[str]) -> bool:
    """Whether a command line runs IPython's kernel, or ours."""
    return module_of(argv) in (KERNEL_MODULE, *IPYKERNEL_MODULES)


def choose(wanted: Transport, manager: Any) -> Transport:
    """Choose how a kernel is reached.

    Parameters
    ----------
    wanted
        What its provisioner is configured for.
    manager
        Its `jupyter_client.KernelManager`, before it has written a connection file.

    Returns
    -------
    Transport
        Not ``AUTO``. What the manager is configured for comes first: with ``ipc``, encryption, or
        ports and addresses of somebody's choice the kernel is where it was asked to be.
    """
    if manager.transport == Transport.IPC:
        return Transport.IPC
    if _policy(manager) != "disabled":
        return Transport.CURVE
    if wanted is not Transport.AUTO:
        return wanted
    if _names(manager, "transport"):
        return Transport.TCP
    spec = manager.kernel_spec
    if not _is_placed(manager) and is_ipythons(spec.argv):
        return Transport.IPC
    return Transport.CURVE if can_encrypt(manager) else Transport.TCP


def can_encrypt(manager: Any) -> bool:
    """Whether a manager and its kernel know CurveZMQ."""
    if not hasattr(manager, "transport_encryption") or _names(manager, "transport_encryption"):
        return False
    declared = manager.kernel_spec.metadata.get("supported_encryption") or ()
    return "curve" in ([declared] if isinstance(declared, str) else declared)


def _policy(manager: Any) -> str:
    return str(getattr(manager, "transport_encryption", "disabled")).lower()


def _is_placed(manager: Any) -> bool:
    """Whether somebody has chosen its address or ports."""
    return manager.ip not in {"127.0.0.1", "localhost", "::1"} or any(manager.ports)


def _names(manager: Any, trait: str) -> bool:
    """Whether a trait of a manager is configured."""
    return any(trait in manager.config.get(cls.__name__, {}) for cls in type(manager).__mro__)


def reached(connection_file: str | Path) -> Reached:
    """Read from a connection file how its kernel is reached."""
    try:
        info = read_json(Path(connection_file))
    except (OSError, ValueError):
        return Reached.UNKNOWN
    if not isinstance(info, dict):
        return Reached.UNKNOWN
    if info.get("transport") == Transport.IPC:
        return Reached.IPC
    return Reached.ENCRYPTED if info.get("curve_publickey") else Reached.PLAIN
