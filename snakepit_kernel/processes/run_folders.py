"""Run folders: the private directory of each run, which goes with the run.

A folder is named by its run and says in a file who made it, so that the next start can remove what
a power cut left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

from ..files import open_file, read_file
from ..ids import is_run_id, new_run_id, own_run_id
from ..locks import Lock
from ..paths import RUNTIME_VARIABLE, runtime_dir, runtime_dirs
from .identity import ProcessIdentity
from .pid_scope import PidScope, Visibility, here

OWNER_FILE = "owner"

UNCLAIMED_SECONDS = 60.0
"""Age at which a folder that names no owner is a leftover: its maker died before it could."""


def run_folder(run_id: str) -> Path:
    """Return where the files of a run are; it need not exist."""
    return runtime_dir() / run_id


def remove_run_folders(run_id: str) -> None:
    """Remove what a run has left, wherever runs have their files."""
    for directory in runtime_dirs():
        shutil.rmtree(directory / run_id, ignore_errors=True)  # it follows no link


def make_folder(purpose: str) -> Path:
    """Make a new private folder for this process, in the folder of its run.

    A process outside of any run makes up a run of its own for it.

    Parameters
    ----------
    purpose
        A short name, for people.

    Raises
    ------
    OSError
        It cannot be made, or nothing can be written there; nothing is left.
    """
    run = run_folder(own_run_id() or new_run_id())
    folder = run / f"{purpose[:8]}-{new_run_id()[:6]}"
    try:
        _make(run, folder)
    except BaseException as error:
        remove_folder(folder)
        if not isinstance(error, OSError):
            raise
        text = f"{error.strerror}; make room there, or set {RUNTIME_VARIABLE} to another directory"
        raise OSError(error.errno, text, str(folder)) from error
    return folder


def _make(run: Path, folder: Path) -> None:
    for _ in range(10):
        run.mkdir(mode=0o700, exist_ok=True)
        try:
            folder.mkdir(mode=0o700)
        except FileNotFoundError:
            continue  # another pool of this process ended in between, and took the run's folder
        break
    # Whole or not at all: a sweep may look at any moment.
    unclaimed = folder / f"{OWNER_FILE}.new"
    place, identity = here(), ProcessIdentity.of(os.getpid())
    with open(unclaimed, "x", encoding="ascii", opener=open_file) as file:
        file.write(f"{identity} {place.boot} {place.pid_namespace} {place.written_host}")
    unclaimed.replace(folder / OWNER_FILE)


class Folder:
    """A private folder of this process that stays, if need be elsewhere, when somebody removes it.

    Parameters
    ----------
    purpose
        A short name, for people.

    Attributes
    ----------
    path
        Where it was the last time.

    Raises
    ------
    OSError
        As for `make_folder`.
    """

    def __init__(self, purpose: str) -> None:
        self._purpose = purpose
        self._lock = Lock()
        self.path = make_folder(purpose)

    def present(self) -> Path:
        """Return where it is; make it anew if it is gone.

        With a login session its whole directory goes, and only the next one brings that again.

        Raises
        ------
        OSError
            As for `make_folder`.
        """
        with self._lock:
            try:
                remake_folder(self.path)
            except FileNotFoundError:
                self.path = make_folder(self._purpose)
            return self.path


def remake_folder(folder: Path) -> None:
    """Make a folder anew that `make_folder` gave, if somebody has removed it.

    Raises
    ------
    OSError
        It cannot be made.
    """
    if folder.is_dir():
        return
    runtime_dir()
    with contextlib.suppress(FileExistsError):  # another thread was faster
        _make(folder.parent, folder)


def remove_folder(folder: Path) -> None:
    """Remove a folder that `make_folder` gave, and that of its run when nothing else is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # another pool of the same process, or gone already
        folder.parent.rmdir()


def sweep_folders() -> list[Path]:
    """Remove the folders of dead processes; return what was removed."""
    return [folder for directory in runtime_dirs() for folder in _sweep(directory)]


def _sweep(directory: Path) -> list[Path]:
    removed = []
    for run in directory.iterdir():
        if not is_run_id(run.name) or run.is_symlink():
            continue
        for folder in run.glob("*"):
            if is_leftover(folder):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
        if _age(run) > UNCLAIMED_SECONDS:
            with contextlib.suppress(OSError):  # it is in use, or another sweep was faster
                run.rmdir()
    return removed


def is_leftover(folder: Path) -> bool:
    """Whether it is certain that the process that made a folder is dead."""
    try:
        identity, place = _read_owner(folder)
    except (FileNotFoundError, NotADirectoryError):
        # Nobody puts anything into a folder before it is claimed: what holds more is not ours.
        return _is_bare(folder) and _age(folder) > UNCLAIMED_SECONDS
    except (OSError, ValueError):
        return _age(folder) > UNCLAIMED_SECONDS
    if place.visibility is Visibility.HERE:
        return not identity.is_alive()
    return place.visibility is Visibility.PAST


def is_elsewhere(folder: Path) -> bool:
    """Whether the process that made a folder is on another host, or in another container."""
    try:
        return _read_owner(folder)[1].visibility is Visibility.ELSEWHERE
    except (OSError, ValueError):
        return False


def _read_owner(folder: Path) -> tuple[ProcessIdentity, PidScope]:
    """Read who made a folder, and where.

    Raises
    ------
    OSError, ValueError
        It does not say so.
    """
    owner, _, where = read_file(folder / OWNER_FILE).partition(" ")
    identity = ProcessIdentity.parse(owner)
    boot, _, rest = where.partition(" ")
    if not rest:  # an earlier version wrote it, which took every place for this machine
        return identity, replace(here(), boot=boot)
    pid_namespace, _, host = rest.partition(" ")
    return identity, PidScope.read(host, boot, int(pid_namespace))


def is_in_use(run: Path) -> bool:
    """Whether a process that made one of the folders of a run lives."""
    return any(
        (folder / OWNER_FILE).exists() and not is_leftover(folder) for folder in run.glob("*")
    )


def _is_bare(folder: Path) -> bool:
    try:
        return {path.name for path in folder.iterdir()} <= {f"{OWNER_FILE}.new"}
    except OSError:
        return False


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
