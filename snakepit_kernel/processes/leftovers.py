"""Removing what the registry says that a dead run has left, as far as it can be a run's.

A row may be damaged, or written by somebody else: no path in it is obeyed outside of the places
where runs have their files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import stat
from pathlib import Path

from ..ids import is_run_id
from ..paths import jupyter_runtime_dir, runtime_dirs
from .os_limits import is_group, remove_group
from .run_folders import is_in_use

logger = logging.getLogger(__name__)

_CONNECTION_FILE = re.compile(r"kernel-[\w.-]+\.json")
_JUPYTERS_SOCKET = re.compile(r"kernel-[\w.-]+-\d+")
_OWN_SOCKET = re.compile(r"[a-z2-7]{13}-\d+")


def remove_leftover(text: str) -> None:
    """Remove what a row names; or say that it is not removed, and why.

    A folder of a run goes with all that is in it. Other files go only if they are plain files or
    sockets of ours, and lie where those of kernels do, under such names.
    """
    try:
        status = os.lstat(text)
    except (OSError, ValueError):
        return  # most are gone already
    path = Path(text)
    is_ours = os.path.normpath(text) == text and status.st_uid == os.geteuid()
    if is_ours and stat.S_ISDIR(status.st_mode):
        if is_group(path):
            remove_group(path)
            return
        if is_run_id(path.name) and _place_of(path) in _own_places():
            if not is_in_use(path):
                shutil.rmtree(path, ignore_errors=True)  # it follows no link
            return
    elif is_ours and _is_a_kernels(path, status.st_mode):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    logger.warning(
        "%s is not removed, though the registry of runs names it: it is not where a run has its "
        "files; remove it if it is of no use",
        path,
    )


def _is_a_kernels(path: Path, mode: int) -> bool:
    """Whether a file has a place and a name that those of kernels have."""
    is_socket = stat.S_ISSOCK(mode)
    if not is_socket and not stat.S_ISREG(mode):
        return False
    place, own = _place_of(path), _own_places()
    if place in own:
        return is_socket and _OWN_SOCKET.fullmatch(path.name) is not None
    if place == Path(os.path.realpath(jupyter_runtime_dir())):
        name = _JUPYTERS_SOCKET if is_socket else _CONNECTION_FILE
        return name.fullmatch(path.name) is not None
    return any(
        place.is_relative_to(folder) and is_run_id(place.relative_to(folder).parts[0])
        for folder in own
    )


def _place_of(path: Path) -> Path:
    return Path(os.path.realpath(path.parent))


def _own_places() -> list[Path]:
    return [Path(os.path.realpath(folder)) for folder in runtime_dirs()]
