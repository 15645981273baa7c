"""Status files of pools, which their owners publish for other processes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ...files import NotOurs, read_file
from ...paths import runtime_dirs
from ...processes.run_folders import is_elsewhere, is_leftover
from ..status import PoolStatus, memory_of, status_path


class UnreadablePool(ValueError):
    """A pool's file is damaged, or was written by another version of this package."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path} cannot be read; was it written by another version of Snakepit?"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPool:
    """A pool's status as its owner last wrote it.

    Attributes
    ----------
    folder
        The pool's private directory.
    status
        The status.
    written
        When it was written, in seconds since the epoch.
    """

    folder: Path
    status: PoolStatus
    written: float

    @property
    def run_id(self) -> str:
        """The run of the process that opened the pool; a name of its own outside of any run."""
        return self.folder.parent.name

    @property
    def is_live(self) -> bool:
        """Whether the very process that opened the pool is alive, or may be so elsewhere."""
        return not is_leftover(self.folder)

    @property
    def is_here(self) -> bool:
        """Whether its pids are pids here; elsewhere, they mean other processes."""
        return not is_elsewhere(self.folder)

    def refreshed(self) -> PoolStatus:
        """Return the status with present memory and ages."""
        age = max(0.0, time.time() - self.written)
        is_here = self.is_here
        workers = [
            replace(
                worker,
                seconds=worker.seconds + age,
                running_seconds=_older(worker.running_seconds, age),
                memory_bytes=memory_of(worker.pid) if is_here else worker.memory_bytes,
            )
            for worker in self.status.workers
        ]
        return replace(self.status, workers=workers)


def live_pools() -> tuple[list[PublishedPool], list[str]]:
    """Return the pools whose owner is alive, by name, and messages about unreadable files.

    Raises
    ------
    OSError
        The runtime directory cannot be used.
    """
    found, problems = [], []
    for folder in (folder for directory in runtime_dirs() for folder in pool_folders(directory)):
        try:
            pool = read_pool(folder)
        except UnreadablePool as error:
            problems.append(str(error))
            continue
        if pool is not None and pool.is_live:
            found.append(pool)
    found.sort(key=lambda pool: (pool.status.name, pool.status.owner_pid))
    return found, problems


def _older(seconds: float | None, age: float) -> float | None:
    return None if seconds is None else seconds + age


def pool_folders(directory: Path) -> list[Path]:
    """Return the folders of a runtime directory in which a pool has published its status."""
    # The folder of a run contains one for each of its pools.
    return sorted(folder for folder in directory.glob("*/*") if status_path(folder).is_file())


def read_pool(folder: Path) -> PublishedPool | None:
    """Read a pool's published status; return None when it has just been removed.

    Raises
    ------
    UnreadablePool
        The file does not have the format of this version.
    """
    path = status_path(folder)
    try:
        written = path.stat().st_mtime
        status = PoolStatus.from_json(json.loads(read_file(path)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, NotOurs) as error:
        raise UnreadablePool(path) from error
    return PublishedPool(folder=folder, status=status, written=written)
