"""Commands to a pool from another process of the same user.

A pool listens at a Unix socket in its private folder. A command is a line of JSON, and so is the
answer; each connection carries one.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

PATIENCE = 10.0
"""Seconds that a pool may take to obey."""

RECYCLE_PATIENCE = 120.0
"""The same where a worker must start first."""

MAX_LINE_BYTES = 1 << 16


class _Command(msgspec.Struct, frozen=True, tag_field="op", forbid_unknown_fields=True):
    pass


class InterruptWorker(_Command, frozen=True, tag="interrupt"):
    """Interrupt what a worker runs, as Ctrl-C does."""

    worker: str


class RecycleWorker(_Command, frozen=True, tag="recycle"):
    """Replace a worker by a new one; it finishes its work first."""

    worker: str


class KillWorker(_Command, frozen=True, tag="kill"):
    """End a worker at once; a new one takes its place."""

    worker: str


class StopPool(_Command, frozen=True, tag="stop"):
    """End the pool at once."""


class CancelJob(_Command, frozen=True, tag="cancel"):
    """Interrupt a background cell or call of the notebook."""

    job: int


Command = InterruptWorker | RecycleWorker | KillWorker | StopPool | CancelJob


class Answer(msgspec.Struct, frozen=True):
    """The answer to a command.

    Attributes
    ----------
    problem
        Why it was not obeyed; empty if it was.
    """

    problem: str = ""


class CommandRefused(ValueError):
    """A pool does not obey a command; the text says why."""


class PoolUnreachable(ConnectionError):
    """A pool does not answer; the text says why."""


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Command).decode
decode_answer = msgspec.json.Decoder(Answer).decode


def socket_path(folder: Path) -> Path:
    """Return the socket at which a pool with this private folder takes commands."""
    return folder / "commands"


async def send(folder: Path, command: Command, patience: float | None = None) -> None:
    """Send a command to the pool with this private folder; return when it has been obeyed.

    Parameters
    ----------
    folder
        The pool's folder.
    command
        The command.
    patience
        Seconds that it may take. Default: as the command needs.

    Raises
    ------
    CommandRefused
        The pool does not obey.
    PoolUnreachable
        It has ended, or does not answer in time.
    """
    if patience is None:
        patience = RECYCLE_PATIENCE if isinstance(command, RecycleWorker) else PATIENCE
    try:
        async with asyncio.timeout(patience):
            line = await _ask(folder, encode(command) + b"\n")
    except TimeoutError as error:
        msg = f"the pool does not answer within {patience:g} s: its process may be stopped"
        raise PoolUnreachable(msg) from error
    except OSError as error:
        msg = f"the pool takes no commands: it has ended, or begins ({error.strerror})"
        raise PoolUnreachable(msg) from error
    if not line.endswith(b"\n"):
        msg = "the pool has ended before it answered"
        raise PoolUnreachable(msg)
    problem = decode_answer(line).problem
    if problem:
        raise CommandRefused(problem)


async def _ask(folder: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(socket_path(folder), limit=MAX_LINE_BYTES)
    try:
        writer.write(request)
        await writer.drain()
        return await reader.readline()
    finally:
        writer.close()
