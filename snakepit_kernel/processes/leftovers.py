"""Removal of the files that the registry lists for a dead run.

A row may be damaged, or written by somebody else: a path in it is removed only within the
directories where runs have their files.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from pathlib import Path

from ..ids import is_run_id
from ..loggers import get_logger
from ..paths import jupyter_runtime_dir, runtime_dirs
from .os_limits import is_group, remove_group
from .run_folders import is_in_use

logger = get_logger(__name__)

_CONNECTION_FILE = re.compile(r"kernel-[\w.-]+\.json")
_JUPYTER_SOCKET = re.compile(r"kernel-[\w.-]+-\d+")
_OWN_SOCKET = re.compile(r"[a-z2-7]{13}-\d+")


def remove_leftover(text: str) -> None:
    """Remove a path that a row lists, or log why it is not removed.

    A run folder is removed with its contents. Other files are removed only if they are plain files
    or sockets of this user, in a directory and under a name that kernels' files have.
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
        if is_run_id(path.name) and _real_parent(path) in _real_runtime_dirs():
            if not is_in_use(path):
                shutil.rmtree(path, ignore_errors=True)  # it follows no link
            return
    elif is_ours and _is_kernel_file(path, status.st_mode):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    logger.warning(
        "%s is not removed, though the registry of runs names it: it is not where a run has its "
        "files; remove it if it is of no use",
        path,
    )


def _is_kernel_file(path: Path, mode: int) -> bool:
    """Whether a file has a directory and a name that kernels' files have."""
    is_socket = stat.S_ISSOCK(mode)
    if not is_socket and not stat.S_ISREG(mode):
        return False
    place, own = _real_parent(path), _real_runtime_dirs()
    if place in own:
        return is_socket and _OWN_SOCKET.fullmatch(path.name) is not None
    if place == Path(os.path.realpath(jupyter_runtime_dir())):
        name = _JUPYTER_SOCKET if is_socket else _CONNECTION_FILE
        return name.fullmatch(path.name) is not None
    return any(
        place.is_relative_to(folder) and is_run_id(place.relative_to(folder).parts[0])
        for folder in own
    )


def _real_parent(path: Path) -> Path:
    return Path(os.path.realpath(path.parent))


def _real_runtime_dirs() -> list[Path]:
    return [Path(os.path.realpath(folder)) for folder in runtime_dirs()]
