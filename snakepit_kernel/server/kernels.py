"""The kernels of a Jupyter server, as far as the panel of workers needs them."""

from __future__ import annotations

from dataclasses import dataclass


class NotServed(LookupError):
    """No kernel of this server has it, or it has ended; the text says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel of this server.

    Attributes
    ----------
    id
        Its id in the server.
    name
        Name of its notebook or console, for people.
    path
        Path of its notebook in the server; None if it has none.
    state
        As the server shows it: ``"idle"``, ``"busy"``.
    pid
        Its process, if it is one of this machine.
    run_id
        Its run, if our provisioner has started it; else empty.
    """

    id: str
    name: str
    path: str | None
    state: str
    pid: int | None
    run_id: str
