"""Checks of what lies on the machine: directories, the registry, orphans and leftovers."""

from __future__ import annotations

import json
import logging
import shlex
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..ids import RUN_ID_OPTION, is_run_id
from ..paths import DATA_VARIABLE, RUNTIME_VARIABLE, data_dir, fits_sockets, runtime_dir
from ..processes import registry as registry_module
from ..processes.folders import is_leftover
from ..processes.identity import all_statuses, read_command
from ..processes.registry import Registry, Run
from ..processes.sweep import TaggedProcess, tagged_processes
from .findings import Finding, hint, listing, ok, problem
from .installation import KERNEL

YOUNG = 60.0
"""Seconds before a file without a process may be a leftover: its process may be starting."""


# -- directories -----------------------------------------------------------------------------------


def check_runtime_directory() -> Iterator[Finding]:
    """Look whether the runtime directory is ours, private, and leaves room for sockets."""
    yield from _check_directory("runtime directory", runtime_dir, RUNTIME_VARIABLE, sockets=True)


def check_data_directory() -> Iterator[Finding]:
    """Look whether the data directory is ours and private."""
    yield from _check_directory("data directory", data_dir, DATA_VARIABLE, sockets=False)


def _check_directory(
    name: str, find: Callable[[], Path], variable: str, *, sockets: bool
) -> Iterator[Finding]:
    try:
        path = find()
    except PermissionError as error:  # its text says what to do
        yield problem(name, str(error))
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        text = f"{path} is open to others (mode {mode:o})"
        yield problem(name, text, f"its file system keeps no modes: set {variable} to another one")
    elif sockets and not fits_sockets(path):
        text = f"{path} is too long: sockets in it would pass the 107 bytes that Linux allows"
        yield problem(name, text, f"set {variable} to a shorter one")
    else:
        yield ok(name, str(path))


# -- registry --------------------------------------------------------------------------------------


class _Warnings(logging.Handler):
    """Keeps what is logged, instead of writing it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text of one record."""
        self.texts.append(record.getMessage())


def check_registry() -> Iterator[Finding]:
    """Look whether the registry of runs can be read."""
    runs, complaints = read_runs()
    if complaints:
        advice = "mend the cause, and heed what is said of processes"
        yield problem("registry", "; ".join(complaints), advice)
        return
    live = sum(not run.is_dead for run in runs)
    yield ok("registry", f"{live} live runs in {Registry().path}")


def read_runs() -> tuple[list[Run], list[str]]:
    """Return the registry's runs, and what it says is wrong with it.

    The registry never raises, because it must not stand in the way of a kernel's start; it logs.
    """
    warnings = _Warnings()
    registry_module.logger.addHandler(warnings)
    try:
        return Registry().runs(), warnings.texts
    finally:
        registry_module.logger.removeHandler(warnings)


# -- processes -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphanRun:
    """Living processes of a run for which nobody answers any more.

    Attributes
    ----------
    run
        Its row in the registry, or None when the registry does not know it.
    """

    run_id: str
    run: Run | None
    processes: list[TaggedProcess]


def check_processes() -> Iterator[Finding]:
    """Look for processes of runs whose owner and guardian are dead."""
    name = "processes"
    tagged = tagged_processes()  # before the registry: a run is written down before it is started
    runs, _ = read_runs()
    orphans = find_orphans(tagged, runs)
    for orphan in orphans:
        yield _describe_orphan(orphan)
    alive = {process.run_id for process in tagged if process.identity.is_alive()}
    stale = [run for run in runs if run.is_dead and run.run_id not in alive]
    if stale:
        yield hint(
            name,
            f"{len(stale)} runs of dead owners are still written down; nothing of them is alive",
            "the next start of a kernel forgets them",
            [run.run_id for run in stale],
        )
    if not orphans:
        yield ok(name, f"no orphans; living processes belong to {len(alive)} runs")


def find_orphans(tagged: Iterable[TaggedProcess], runs: Iterable[Run]) -> list[OrphanRun]:
    """Return the runs that have living processes and nobody who answers for them.

    A process is in order when its run is written down and not dead. Runs of another registry
    (``SNAKEPIT_DATA_DIR``) are not written down in this one: theirs are in order below a living
    guardian of their run.

    Parameters
    ----------
    tagged
        Processes with the tag of a run, read before ``runs``.
    runs
        The registry's rows.
    """
    known = {run.run_id: run for run in runs}
    tagged = list(tagged)
    parents = {status.pid: status.parent for status in all_statuses()}
    guardians = {item.identity.pid: item.run_id for item in tagged if _is_guardian(item)}
    orphans: dict[str, OrphanRun] = {}
    for process in tagged:
        run = known.get(process.run_id)
        if run is not None and not run.is_dead:
            continue
        if run is None and process.run_id in _ancestry(process.identity.pid, parents, guardians):
            continue
        if process.identity.is_alive():
            orphan = OrphanRun(run_id=process.run_id, run=run, processes=[])
            orphans.setdefault(process.run_id, orphan).processes.append(process)
    return list(orphans.values())


def _is_guardian(process: TaggedProcess) -> bool:
    words = process.command.split(" ")
    is_told_its_owner = any(word.startswith("--owner=") for word in words)
    return is_told_its_owner and RUN_ID_OPTION + process.run_id in words


def _ancestry(pid: int, parents: dict[int, int], guardians: dict[int, str]) -> set[str]:
    """Return the runs whose guardians stand above a process, or are it."""
    found = set()
    while pid in parents:
        if pid in guardians:
            found.add(guardians[pid])
        pid = parents[pid]
    return found


def _describe_orphan(orphan: OrphanRun) -> Finding:
    processes = [f"{item.identity.pid} {item.command}" for item in orphan.processes]
    pids = " ".join(str(item.identity.pid) for item in orphan.processes)
    label = f" ({orphan.run.label})" if orphan.run is not None else ""
    text = (
        f"orphan run {orphan.run_id}{label}: its owner and its guardian are dead, and "
        f"{len(processes)} of its processes live: {listing([item[:80] for item in processes])}"
    )
    advice = f"end them: kill {pids}"
    if orphan.run is not None:
        advice += "; the next start of a kernel does it too"
    return problem("processes", text, advice, processes)


# -- leftovers -------------------------------------------------------------------------------------


def check_leftovers() -> Iterator[Finding]:
    """Look for files of owners that are dead. They do no harm but lie about."""
    from jupyter_core.paths import jupyter_runtime_dir

    name = "leftovers"
    commands = [read_command(status.pid) for status in all_statuses()]
    folders = [str(path) for path in _stale_folders(runtime_dir())]
    files = [
        *(str(path) for path in _stale_sockets(runtime_dir(), commands)),
        *(str(path) for path in _stale_connection_files(Path(jupyter_runtime_dir()), commands)),
    ]
    if folders:
        text = f"{len(folders)} folders of dead processes: {listing(folders)}"
        yield hint(name, text, "the next start of a kernel removes them", folders)
    if files:
        text = f"{len(files)} files of kernels that are dead"
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
    """Return the sockets of kernels that talk by ipc and that no process uses."""
    return [
        path
        for path in sorted(directory.iterdir())
        if path.is_socket()
        and is_run_id(path.name.partition("-")[0])
        and _is_unused(path, commands)
    ]


def _stale_connection_files(directory: Path, commands: list[str]) -> list[Path]:
    """Return connection files of our kernels that no process uses."""
    return [
        path
        for path in sorted(directory.glob("kernel-*.json"))
        if _kernel_of(path) == KERNEL and _is_unused(path, commands)
    ]


def _kernel_of(path: Path) -> str | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # gone, or somebody else's
    name = content.get("kernel_name") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None


def _is_unused(path: Path, commands: list[str]) -> bool:
    """Whether a file is not young, and no process names it on its command line."""
    try:
        age = time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return False
    return age > YOUNG and not any(path.name in command for command in commands)
