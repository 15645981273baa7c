"""Run folders: the private directory of each run, removed with the run.

A folder is named by its run, and a file in it names the process that created it, so that the next
start can remove what a power cut has left.
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
"""Age at which a folder without an owner file is a leftover: its creator died before writing it."""


def run_folder(run_id: str) -> Path:
    """Return the folder for the files of a run; it need not exist."""
    return runtime_dir() / run_id


def remove_run_folders(run_id: str) -> None:
    """Remove the folders of a run in all runtime directories."""
    for directory in runtime_dirs():
        shutil.rmtree(directory / run_id, ignore_errors=True)  # it follows no link


def make_folder(purpose: str) -> Path:
    """Create a private folder for this process, in the folder of its run.

    A process outside of any run gets a folder with a new run id.

    Parameters
    ----------
    purpose
        A short name, for people.

    Raises
    ------
    OSError
        It cannot be created or written to; nothing is left behind.
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
            continue  # another pool of this process ended in between, and removed the run's folder
        break
    # Written whole or not at all: a sweep may read it at any moment.
    unclaimed = folder / f"{OWNER_FILE}.new"
    scope, identity = here(), ProcessIdentity.of(os.getpid())
    with open(unclaimed, "x", encoding="ascii", opener=open_file) as file:
        file.write(f"{identity} {scope.boot} {scope.pid_namespace} {scope.written_host}")
    unclaimed.replace(folder / OWNER_FILE)


class Folder:
    """A private folder of this process that is created again, if need be elsewhere, when removed.

    Parameters
    ----------
    purpose
        A short name, for people.

    Attributes
    ----------
    path
        Its latest path.

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
        """Return its path; create it again if it is gone.

        The end of a login session removes the whole runtime directory, which comes back with the
        next one.

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
    """Create a folder of `make_folder` again, if it was removed.

    Raises
    ------
    OSError
        It cannot be created.
    """
    if folder.is_dir():
        return
    runtime_dir()
    with contextlib.suppress(FileExistsError):  # another thread was faster
        _make(folder.parent, folder)


def remove_folder(folder: Path) -> None:
    """Remove a folder of `make_folder`, and that of its run if it is empty then."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # another pool of the same process, or gone already
        folder.parent.rmdir()


def sweep_folders() -> list[Path]:
    """Remove the folders of dead processes; return the removed paths."""
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
    """Whether the process that created a folder is certainly dead."""
    try:
        identity, scope = _read_owner(folder)
    except (FileNotFoundError, NotADirectoryError):
        # Nothing is put into a folder before its owner file: a folder that holds more is not ours.
        return _is_bare(folder) and _age(folder) > UNCLAIMED_SECONDS
    except (OSError, ValueError):
        return _age(folder) > UNCLAIMED_SECONDS
    if scope.visibility is Visibility.HERE:
        return not identity.is_alive()
    return scope.visibility is Visibility.PAST


def is_elsewhere(folder: Path) -> bool:
    """Whether the process that created a folder is on another host, or in another container."""
    try:
        return _read_owner(folder)[1].visibility is Visibility.ELSEWHERE
    except (OSError, ValueError):
        return False


def _read_owner(folder: Path) -> tuple[ProcessIdentity, PidScope]:
    """Read the owner of a folder and its scope.

    Raises
    ------
    OSError, ValueError
        There is no valid owner file.
    """
    owner, _, where = read_file(folder / OWNER_FILE).partition(" ")
    identity = ProcessIdentity.parse(owner)
    boot, _, rest = where.partition(" ")
    if not rest:  # written by an earlier version, which assumed this machine's scope
        return identity, replace(here(), boot=boot)
    pid_namespace, _, host = rest.partition(" ")
    return identity, PidScope.read(host, boot, int(pid_namespace))


def is_in_use(run: Path) -> bool:
    """Whether a process that created one of the folders of a run is alive."""
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
