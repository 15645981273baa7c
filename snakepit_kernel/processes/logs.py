"""Log files of workers: private, bounded, with one earlier part in a second file."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from ..files import open_file

LOG_BYTES = 1 << 20
"""Size at which a log is rotated; as much of its end is kept in a second file."""

_APPENDING = os.O_WRONLY | os.O_APPEND | os.O_CREAT


def open_log(path: Path) -> io.FileIO:
    """Open a log that only its user can read, for appending.

    Raises
    ------
    OSError
        It cannot be created, or other users have access to it.
    """
    return io.FileIO(open_file(path, _APPENDING), "wb")


def bound(descriptor: int) -> None:
    """Rotate a log if it has grown too long.

    Other processes that have it open continue at its new end, because it is opened for appending.

    Parameters
    ----------
    descriptor
        File descriptor of a log that `open_log` has opened, in any process.
    """
    size = os.fstat(descriptor).st_size
    if size <= LOG_BYTES:
        return
    path = Path(f"/proc/self/fd/{descriptor}")
    with contextlib.suppress(OSError):  # disk full, or its folder is gone: only the bound matters
        if (log := path.readlink()).exists():
            _keep(path, _earlier(log), size)
    os.ftruncate(descriptor, 0)


def bound_file(path: Path) -> None:
    """Rotate a log that is not open here if it has grown too long."""
    with contextlib.suppress(OSError):  # it is gone, or does not exist yet
        if path.stat().st_size > LOG_BYTES:
            with open_log(path) as log:
                bound(log.fileno())


def _keep(source: Path, target: Path, size: int) -> None:
    with (
        source.open("rb") as log,
        io.FileIO(open_file(target, os.O_WRONLY | os.O_CREAT), "wb") as kept,
    ):
        kept.truncate(0)  # not before `open_file` has checked that it is ours
        log.seek(max(0, size - LOG_BYTES))
        kept.write(log.read(LOG_BYTES))


def read_end(path: Path, size: int) -> bytes:
    """Return the last bytes of a log, up to a number.

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
    """Remove a log and its earlier part."""
    path.unlink(missing_ok=True)
    _earlier(path).unlink(missing_ok=True)


def _end_of(path: Path, size: int) -> bytes:
    with open(open_file(path, os.O_RDONLY), "rb") as log:  # noqa: PTH123 - it is a descriptor
        log.seek(max(0, log.seek(0, os.SEEK_END) - size))
        return log.read(size)


def _earlier(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")
