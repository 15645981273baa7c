"""The doctor's checks of directories, registry, store, orphan processes and leftover files."""

from __future__ import annotations

import logging
import os
import shlex
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from ..errors import StoreError
from ..files import read_json
from ..ids import is_run_id
from ..paths import (
    DATA_VARIABLE,
    RUNTIME_VARIABLE,
    data_dir,
    fits_sockets,
    jupyter_runtime_dir,
    runtime_dir,
    runtime_dirs,
)
from ..printable import counted
from ..processes import run_registry as registry_module
from ..processes.identity import all_statuses, read_command_line
from ..processes.run_folders import is_leftover
from ..processes.run_registry import Registry, Run
from ..processes.sweep import TaggedProcess, survey
from ..store import database as database_module
from ..store.store import FILE_NAME, Store
from .findings import Finding, hint, listing, ok, problem
from .installation_checks import KERNEL

T = TypeVar("T")

MIN_LEFTOVER_AGE = 60.0
"""Seconds before a file without a process counts as a leftover: its process may be starting."""


# -- directories -----------------------------------------------------------------------------------


def check_runtime_directory() -> Iterator[Finding]:
    """Check that the runtime directory is ours, private, and short enough for sockets."""
    yield from _check_directory("runtime directory", runtime_dir, RUNTIME_VARIABLE, sockets=True)


def check_data_directory() -> Iterator[Finding]:
    """Check that the data directory is ours and private."""
    yield from _check_directory("data directory", data_dir, DATA_VARIABLE, sockets=False)


def _check_directory(
    name: str, find: Callable[[], Path], variable: str, *, sockets: bool
) -> Iterator[Finding]:
    try:
        path = find()
    except PermissionError as error:  # its text says what to do
        yield problem(name, str(error))
        return
    if sockets and not fits_sockets(path):
        text = f"{path} is too long: sockets in it would pass the 107 bytes that Linux allows"
        yield problem(name, text, f"set {variable} to a shorter one")
    elif (parent := _replaceable_in(path)) is not None:
        text = f"others may change {parent}, and could replace {path}"
        yield hint(name, text, f"chmod go-w {parent}, or set {variable} to another one")
    else:
        yield ok(name, str(path))


UNMAPPED = 65534
"""Shown as the owner of files whose owner has no number in this user namespace."""


def _replaceable_in(path: Path) -> Path | None:
    """Return a directory above a path in which others may rename what leads to it; or None."""
    real = Path(os.path.realpath(path))
    for parent in real.parents:
        status = parent.stat()
        if status.st_uid not in {0, os.geteuid(), UNMAPPED}:
            return parent
        writers = stat.S_IWOTH
        if status.st_gid != status.st_uid:  # else it is the group of that user alone
            writers |= stat.S_IWGRP
        if status.st_mode & writers and not status.st_mode & stat.S_ISVTX:
            return parent
    return None


# -- registry --------------------------------------------------------------------------------------


class _WarningCollector(logging.Handler):
    """Collects logged warnings instead of writing them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Store the text of one record."""
        self.texts.append(record.getMessage())


def check_registry() -> Iterator[Finding]:
    """Check that the registry of runs can be read."""
    runs, warnings = read_runs()
    if warnings:
        advice = "remove the cause, and do what is said about processes"
        yield problem("registry", "; ".join(warnings), advice)
        return
    live = sum(not run.is_dead for run in runs)
    yield ok("registry", f"{counted(live, 'live run')} in {Registry().path}")


def check_store() -> Iterator[Finding]:
    """Check that the store of sessions is intact."""
    path = data_dir() / FILE_NAME
    if not path.exists():
        yield ok("sessions", "none are stored yet")
        return
    (found, count), warnings = _collecting_warnings(
        lambda: _check_store_file(path), database_module.logger
    )
    if found or warnings:
        advice = "what could be read was kept; export the sessions that matter"
        yield problem("sessions", "; ".join([*warnings, *found]), advice)
        return
    yield ok("sessions", f"{count} in {path}")


def _check_store_file(path: Path) -> tuple[list[str], int]:
    store = Store(path)
    try:
        return store.check(), store.sessions.count()
    except StoreError as error:
        return [str(error)], 0
    finally:
        store.close()


def read_runs() -> tuple[list[Run], list[str]]:
    """Return the registry's runs, and the warnings that it logged."""
    # It logs and never raises, because it must not prevent a kernel's start.
    return _collecting_warnings(lambda: Registry().runs(), registry_module.logger)


def _collecting_warnings(check: Callable[[], T], logger: logging.Logger) -> tuple[T, list[str]]:
    """Call a function; return its result, and the warnings that a logger got meanwhile."""
    warnings = _WarningCollector()
    logger.addHandler(warnings)
    try:
        return check(), warnings.texts
    finally:
        logger.removeHandler(warnings)


# -- processes -------------------------------------------------------------------------------------


def check_processes() -> Iterator[Finding]:
    """Search for processes of runs whose owner and guardian are dead."""
    name = "processes"
    found, _ = _collecting_warnings(lambda: survey(Registry()), registry_module.logger)
    orphans = [(run.run_id, run.label, processes) for run, processes in found.dead if processes]
    for run_id, label, processes in orphans:
        text = f"orphan run {run_id} ({label}): its owner and its guardian are dead, and "
        advice = "end them: snakepit reap; the next start of a kernel does it too"
        yield _describe(text, advice, processes)
    for run_id, processes in found.unknown.items():
        pids = " ".join(str(item.identity.pid) for item in processes)
        text = f"orphan run {run_id}: it is not written down, it has no guardian, and "
        yield _describe(text, f"if you do not need them, end them: kill {pids}", processes)
    stale = [run.run_id for run, processes in found.dead if not processes]
    if stale:
        yield hint(
            name,
            f"{counted(len(stale), 'run')} of dead owners still registered; no process is alive",
            "forget them: snakepit reap; the next start of a kernel does it too",
            stale,
        )
    if found.elsewhere:
        scopes = listing(sorted({str(run.scope) for run in found.elsewhere}))
        text = (
            f"{counted(len(found.elsewhere), 'run')} elsewhere ({scopes}) with this data directory"
        )
        advice = f"nothing to do: they are left alone; or set {DATA_VARIABLE} there"
        yield hint(name, text, advice, [run.run_id for run in found.elsewhere])
    if found.kept:
        yield ok(name, f"{len(found.kept)} are kept on purpose; end them: snakepit reap --kept")
    if found.unreadable:
        hidden = [str(pid) for pid in found.unreadable]
        text = f"/proc hides {len(hidden)} of yours, which may be of any run: {listing(hidden)}"
        advice = "mount /proc without hidepid, or look as root, if a run has left something"
        yield hint(name, text, advice, hidden)
    if not found.unknown and not orphans:
        yield ok(name, f"no orphans; {counted(len(found.live), 'live run')}")


def _describe(text: str, advice: str, processes: list[TaggedProcess]) -> Finding:
    names = [str(item) for item in processes]
    text += f"{len(names)} of its processes live: {listing([name[:80] for name in names])}"
    return problem("processes", text, advice, names)


# -- leftovers -------------------------------------------------------------------------------------


def check_leftovers() -> Iterator[Finding]:
    """Search for harmless leftover files of dead owners."""
    name = "leftovers"
    lines = [read_command_line(status.pid) for status in all_statuses()]
    commands = [os.fsdecode(line) for line in lines]
    # Files of runs elsewhere count as used: that cannot be checked from here.
    commands += [path for run in read_runs()[0] if not run.is_dead for path in run.leftovers]
    directories = runtime_dirs()
    folders = [str(path) for directory in directories for path in _stale_folders(directory)]
    files = [
        *(str(path) for directory in directories for path in _stale_sockets(directory, commands)),
        *(str(path) for path in _stale_connection_files(jupyter_runtime_dir(), commands)),
    ]
    if folders:
        text = f"{counted(len(folders), 'folder')} of dead processes: {listing(folders)}"
        yield hint(name, text, "the next start of a kernel removes them", folders)
    if files:
        text = f"{counted(len(files), 'file')} of dead kernels"
        named = listing([shlex.quote(path) for path in files])
        yield hint(name, text, f"remove them (rm): {named}", files)
    if not folders and not files:
        yield ok(name, "none")


def _stale_folders(directory: Path) -> list[Path]:
    """Return the folders of pools whose owner is dead."""
    runs = [path for path in directory.iterdir() if is_run_id(path.name) and path.is_dir()]
    return [
        folder for run in sorted(runs) for folder in sorted(run.iterdir()) if is_leftover(folder)
    ]


def _stale_sockets(directory: Path, commands: list[str]) -> list[Path]:
    """Return the Unix sockets of kernels that no process uses."""
    return [
        path
        for path in sorted(directory.iterdir())
        if path.is_socket()
        and is_run_id(path.name.partition("-")[0])
        and _is_unused(path, commands)
    ]


def _stale_connection_files(directory: Path, commands: list[str]) -> list[Path]:
    """Return connection files of our kernels that no process uses, and the sockets next to them."""
    return [
        found
        for path in sorted(directory.glob("kernel-*.json"))
        if _kernel_of(path) == KERNEL and _is_unused(path, commands)
        for found in (path, *sorted(directory.glob(f"{path.stem}-ipc-*")))
    ]


def _kernel_of(path: Path) -> str | None:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None  # gone, or another program's
    name = content.get("kernel_name") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None


def _is_unused(path: Path, commands: list[str]) -> bool:
    """Whether a file is old enough, and no process names it on its command line."""
    try:
        age = time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return False
    return age > MIN_LEFTOVER_AGE and not any(path.name in command for command in commands)
