"""Search path and working directory of a pool's owner, which its workers follow."""

from __future__ import annotations

import os
import sys

from ..protocol.frames import Segment, pack
from ..protocol.messages import Follow, encode
from .workers.worker import PooledLane


class SearchPath:
    """Versioned ``sys.path`` and working directory of this process.

    Attributes
    ----------
    directory
        The working directory; the last known one if it was removed since.
    """

    def __init__(self) -> None:
        self.directory = ""
        self._entries: list[str] = []
        self._number = 0

    def version(self) -> int:
        """Return the version number of the current state, which increases with each change."""
        try:
            directory = os.getcwd()  # noqa: PTH109 - much faster
        except FileNotFoundError:
            directory = self.directory
        if directory != self.directory or sys.path != self._entries:
            self.directory, self._entries = directory, list(sys.path)
            self._number += 1
        return self._number


search_path = SearchPath()
"""The search path of this process."""


def search_path_frames(lane: PooledLane) -> list[Segment]:
    """Return the frame that updates a worker's search path; empty if it is up to date."""
    number = search_path.version()
    if lane.search_path_version == number:
        return []
    lane.search_path_version = number
    config = lane.worker.config
    directory = search_path.directory if config.follows_cwd else None
    return pack(encode(Follow(config.kernel.import_path(), directory)))
