"""Where the owner of a pool finds modules and files, which its workers follow."""

from __future__ import annotations

import os
import sys

from ..protocol.frames import Segment, pack
from ..protocol.messages import Follow, encode
from .workers.worker import PooledLane


class SearchPath:
    """``sys.path`` and the working directory of this process, with a number for each state.

    Attributes
    ----------
    directory
        The working directory; the last one if it was removed since.
    """

    def __init__(self) -> None:
        self.directory = ""
        self._entries: list[str] = []
        self._number = 0

    def version(self) -> int:
        """Return the number of the present state, which no earlier one had."""
        try:
            directory = os.getcwd()  # noqa: PTH109 - much faster
        except FileNotFoundError:
            directory = self.directory
        if directory != self.directory or sys.path != self._entries:
            self.directory, self._entries = directory, list(sys.path)
            self._number += 1
        return self._number


search_path = SearchPath()
"""That of this process."""


def search_path_frames(lane: PooledLane) -> list[Segment]:
    """Return the frame by which a worker looks where this process does; nothing if it does."""
    number = search_path.version()
    if lane.search_path_version == number:
        return []
    lane.search_path_version = number
    config = lane.worker.config
    directory = search_path.directory if config.follows_cwd else None
    return pack(encode(Follow(config.kernel.import_path(), directory)))
