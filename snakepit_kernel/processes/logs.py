"""Logs of workers: private, bounded, with what came before in a second file."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from ..files import open_file

LOG_BYTES = 1 << 20
"""Size from which on a log begins anew; as much of what came before is kept beside it."""

_APPENDING = os.O_WRONLY | os.O_APPEND | os.O_CREAT


def open_log(path: Path) -> io.FileIO:
    """Open a log that only its user can read, to write behind what is there.

    Raises
    ------
    OSError
        It cannot be made, or is not ours alone.
    """
    return io.FileIO(open_file(path, _APPENDING), "wb")


def bound(descriptor: int) -> None:
    """Begin a log anew if it has grown too long.

    Whoever else has it open goes on behind the new beginning, because it was opened to append.

    Parameters
    ----------
    descriptor
        Of a log that `open_log` has opened, in any process.
    """
    size = os.fstat(descriptor).st_size
    if size <= LOG_BYTES:
        return
    path = Path(f"/proc/self/fd/{descriptor}")
    with contextlib.suppress(OSError):  # no room, or its folder is gone: only the bound matters
        if (log := path.readlink()).exists():
            _keep(path, _earlier(log), size)
    os.ftruncate(descriptor, 0)


def bound_file(path: Path) -> None:
    """Do so for a log that is not open here."""
    with contextlib.suppress(OSError):  # it is gone, or not there yet
        if path.stat().st_size > LOG_BYTES:
            with open_log(path) as log:
                bound(log.fileno())


def _keep(source: Path, target: Path, size: int) -> None:
    with (
        source.open("rb") as log,
        io.FileIO(open_file(target, os.O_WRONLY | os.O_CREAT), "wb") as kept,
    ):
        kept.truncate(0)  # not before it is known to be ours
        log.seek(max(0, size - LOG_BYTES))
        kept.write(log.read(LOG_BYTES))


def read_end(path: Path, size: int) -> bytes:
    """Return the last bytes of a log, as many as there are.

    Raises
    ------
    OSError
        There is no log.
    """
    end = _end_of(path, size)
    if len(end) < size:
        with contextlib.suppress(OSError):
            end = (_end_of(_earlier(path), size) + end)[-size:]
    return end


def remove(path: Path) -> None:
    """Remove a log, and what was kept of it."""
    path.unlink(missing_ok=True)
    _earlier(path).unlink(missing_ok=True)


def _end_of(path: Path, size: int) -> bytes:
    with open(open_file(path, os.O_RDONLY), "rb") as log:  # noqa: PTH123 - it is a descriptor
        log.seek(max(0, log.seek(0, os.SEEK_END) - size))
        return log.read(size)


def _earlier(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")
