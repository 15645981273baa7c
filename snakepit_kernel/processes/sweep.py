"""Search for processes by the tag of their run, and termination of those of dead runs.

This is the safety net below the guardian: it is needed only when a guardian was killed itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import resource
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import SurvivorsError
from ..files import make_directory, read_file
from ..ids import RUN_ID_OPTION, RUN_ID_VARIABLE, is_run_id, run_id_of_number
from ..loggers import get_logger
from ..paths import data_dir
from .concurrency import Coalescer
from .end_report import EndedProcess, EndReport
from .guardian import HIDDEN_COMMAND, MAX_COMMAND
from .identity import (
    SIGKILL,
    ProcessIdentity,
    all_children,
    all_statuses,
    is_hidden,
    living_descendants,
    read_command,
    read_status,
    read_user,
)
from .leftovers import remove_leftover
from .pid_scope import Visibility, here, hides_processes, pid_namespace_of, sees_itself
from .pidfd import open_pidfd
from .run_folders import remove_run_folders, sweep_folders
from .run_registry import ELSEWHERE_SECONDS, EndedRun, Registry, Run
from .tags import (
    MarkedProcess,
    number_of,
    read_arguments,
    read_environment,
    read_mark,
    says_kept,
)

logger = get_logger(__name__)

SIGTERM = 15
SIGCONT = 18
RESCAN_INTERVAL = 0.02
SURVIVOR_PATIENCE = 5.0

UNREADABLE = "(hidden by /proc: it may belong to any run)"

NEWEST_PROCESSES = 64
"""Number of the machine's newest processes that are checked without a scan of all."""

EMPTY_SCANS = 10
"""Checks in a row that must find none: between two checks a process may fork and end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggedProcess:
    """A living process that carries the tag of a run.

    Attributes
    ----------
    kept
        It is marked to outlive its run.
    contained
        It is in another PID namespace than this process: in a container.
    """

    identity: ProcessIdentity
    run_id: str
    command: str
    kept: bool = False
    contained: bool = False

    def __str__(self) -> str:
        return f"{self.identity.pid} {self.command}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All runs and tagged processes, by state.

    Attributes
    ----------
    dead
        Registered runs whose owner and guardian have died, with their living processes.
    unknown
        Processes of unregistered runs, by run: it is unknown whether their owners are alive.
    kept
        Processes of ended runs that are marked to be kept.
    elsewhere
        Runs of other hosts and containers.
    live
        Runs whose owner or guardian is alive.
    unreadable
        Pids of this user's processes that `/proc` hides, and that may belong to any run.
    """

    dead: list[tuple[Run, list[TaggedProcess]]]
    unknown: dict[str, list[TaggedProcess]]
    kept: list[TaggedProcess]
    elsewhere: list[Run]
    live: list[Run]
    unreadable: list[int] = field(default_factory=list)


# -- looking ---------------------------------------------------------------------------------------


def tagged_processes() -> list[TaggedProcess]:
    """Return every living process of this user that carries a run id, except this process."""
    if not sees_itself():
        return []  # /proc shows the pids of another namespace
    pids = [status.pid for status in all_statuses() if not status.is_dead]
    pids += hidden_processes()
    return [process for pid in pids if (process := _read_process(pid)) is not None]


def hidden_processes() -> list[int]:
    """Return the pids of this user's processes that `/proc` hides.

    All possible pids are tried, which takes up to 2 s where four million processes were started
    since the machine was; on most machines nothing is hidden.
    """
    if not hides_processes():
        return []
    # Called in C: no exception for each missing pid. PyDLL holds the GIL, which would otherwise be
    # released and acquired for each call.
    group_of = ctypes.PyDLL(None).getpgid
    pids = range(1, _highest_pid() + 1)
    found = [pid for pid, group in zip(pids, map(group_of, pids), strict=True) if group >= 0]
    return [pid for pid in found if is_hidden(pid) and _is_ours(pid) and not _is_thread(pid)]


def _highest_pid() -> int:
    """Return the highest possible pid: the newest one, until pids wrap around."""
    most = int(Path("/proc/sys/kernel/pid_max").read_text("ascii"))
    statistics = Path("/proc/stat").read_text("ascii")
    started = int(statistics.partition("\nprocesses ")[2].split(None, 1)[0])
    return _newest_pid() if started < most else most


def _newest_pid() -> int:
    return int(Path("/proc/loadavg").read_text("ascii").split()[4])


def unreadable_processes() -> list[int]:
    """Return the pids of this user's processes whose tags cannot be read.

    Those are the set-uid programs that `/proc` hides.
    """
    return [pid for pid in hidden_processes() if not _tells_its_mark(pid)]


def _tells_its_mark(pid: int) -> bool:
    try:
        resource.prlimit(pid, resource.RLIMIT_RSS)
    except ProcessLookupError:
        return True  # it has just ended
    except OSError:
        return False
    return True


def _is_thread(pid: int) -> bool:
    """Whether a number is the id of a thread, which most calls accept for its process."""
    try:
        os.close(open_pidfd(pid))
    except OSError as error:
        return error.errno in {errno.EINVAL, errno.ENOENT}
    return False


def _read_process(pid: int) -> TaggedProcess | None:
    """Read a process that carries a run id; None if it is gone, has none or is not ours to end.

    Not ours to end are this very process and other users' processes.
    """
    status = read_status(pid)
    if status is None:
        return _read_hidden(pid)
    if status.is_dead or pid == os.getpid() or not _is_ours(pid):
        return None
    mark, environment = read_mark(pid), read_environment(pid)
    run_id = _read_tag(mark, environment, read_arguments(pid))
    if run_id is None:
        return None
    return TaggedProcess(
        identity=ProcessIdentity(pid, status.start_time),
        run_id=run_id,
        command=read_command(pid),
        kept=says_kept(mark, environment),
        contained=pid_namespace_of(pid) not in (here().pid_namespace, 0),
    )


def _read_hidden(pid: int) -> TaggedProcess | None:
    """Read what the mark of a process says that `/proc` hides."""
    if not is_hidden(pid):
        return None
    mark = read_mark(pid)
    number = number_of(mark)
    if number is None or _is_thread(pid):
        return None
    return TaggedProcess(
        identity=MarkedProcess(pid, mark),
        run_id=run_id_of_number(number),
        command=HIDDEN_COMMAND,
        kept=says_kept(mark, []),
    )


def survey(registry: Registry) -> Survey:
    """Inspect all runs and tagged processes; change nothing.

    Raises
    ------
    PermissionError
        The data directory cannot be used.
    """
    tagged = tagged_processes()  # before the registry: a run is registered before it starts
    runs = registry.runs()
    dead = [run for run in runs if run.is_dead and not run.is_contradictory]
    over = {run.run_id for run in dead}
    known = {run.run_id: run for run in runs}
    of_run: dict[str, list[TaggedProcess]] = {}
    for process in tagged:
        of_run.setdefault(process.run_id, []).append(process)
    parents = {status.pid: status.parent for status in all_statuses()}
    guardians = {item.identity.pid: item.run_id for item in tagged if _is_guardian(item)}
    unknown: dict[str, list[TaggedProcess]] = {}
    kept = []
    for process in tagged:
        run = known.get(process.run_id)
        above = _guardians_above(process.identity.pid, parents, guardians)
        # A run of another registry (`SNAKEPIT_DATA_DIR`) is in order below its guardian.
        if isinstance(process.identity, MarkedProcess):  # its ancestors are hidden as well
            above = set(guardians.values())
        in_order = run.run_id not in over if run is not None else process.run_id in above
        if in_order or not process.identity.is_alive():
            continue
        if process.kept:
            kept.append(process)
        elif run is None and not process.contained:  # those belong to owners in the container
            unknown.setdefault(process.run_id, []).append(process)
    return Survey(
        dead=[(run, _to_be_ended(of_run.get(run.run_id, []))) for run in dead],
        unknown=unknown,
        kept=kept,
        elsewhere=[run for run in runs if run.is_elsewhere],
        live=[run for run in runs if run.run_id not in over and not run.is_elsewhere],
        unreadable=unreadable_processes(),
    )


def _to_be_ended(processes: Iterable[TaggedProcess]) -> list[TaggedProcess]:
    return [item for item in processes if not item.kept and item.identity.is_alive()]


def _is_guardian(process: TaggedProcess) -> bool:
    words = [os.fsdecode(word) for word in read_arguments(process.identity.pid)]
    is_told_its_owner = any(word.startswith("--owner=") for word in words)
    return is_told_its_owner and RUN_ID_OPTION + process.run_id in words


def _guardians_above(pid: int, parents: dict[int, int], guardians: dict[int, str]) -> set[str]:
    """Return the runs of the guardians among a process and its ancestors."""
    found = set()
    while pid in parents:
        if pid in guardians:
            found.add(guardians[pid])
        pid = parents[pid]
    return found


# -- ending ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Ending:
    """Result of ending some processes.

    Attributes
    ----------
    ended
        Processes that are verified gone, with the name of the last signal that they got.
    survivors
        Processes that are still alive: they sleep in the operating system, or are another user's.
    unreadable
        Pids of processes that `/proc` hides, and that may belong to any run.
    """

    ended: list[tuple[TaggedProcess, str]]
    survivors: list[TaggedProcess]
    unreadable: list[int] = field(default_factory=list)

    def report(self, run_id: str | None = None) -> EndReport:
        """Return the report for one run, or for all."""
        ended = [
            EndedProcess(pid=item.identity.pid, command=item.command[:MAX_COMMAND], signal=name)
            for item, name in self.ended
            if run_id in {None, item.run_id}
        ]
        survivors = [str(item) for item in self.survivors if run_id in {None, item.run_id}]
        survivors += [f"{pid} ? {UNREADABLE}" for pid in self.unreadable]
        return EndReport(verified=not survivors, count=len(ended), ended=ended, survivors=survivors)


Signalled = dict[ProcessIdentity, tuple[TaggedProcess, str]]
"""Processes to be ended, with the name of the last signal that each got."""


async def end_tagged(
    run_ids: Collection[str], grace: float, signalled: Signalled | None = None
) -> Ending:
    """End every process that carries one of the run ids, and all its descendants, tagged or not.

    Processes that are marked to be kept are left alone.
    """
    ending = await _end(
        lambda: _processes_of(run_ids),
        grace,
        lambda signum: _signal_newest(run_ids, signum),
        {} if signalled is None else signalled,
    )
    ending.unreadable = unreadable_processes()
    return ending


async def end_run_tagged(
    registry: Registry, run_id: str, grace: float, signalled: Signalled | None = None
) -> Ending:
    """End every process of a run whose guardian does not do it, and the runs that it had started.

    Those have guardians, which end them because their owners died; but that may take some time.

    Parameters
    ----------
    registry
        Where the runs are registered.
    run_id
        The run.
    grace
        Seconds between SIGTERM and SIGKILL.
    signalled
        Processes signalled by concurrent calls that end this run; each of them reports all.
    """
    signalled = {} if signalled is None else signalled
    ending = await end_tagged([run_id], grace, signalled)
    over = {run_id}
    while nested := {
        run.run_id
        for run in registry.runs()
        if run.parent in over
        and run.run_id not in over
        and not run.is_elsewhere
        and not run.owner.is_alive()  # an owner that is kept ends its runs itself
    }:
        over |= nested
        more = await end_tagged(nested, grace, signalled)
        ending.ended = more.ended
        ending.survivors += more.survivors
        ending.unreadable = more.unreadable
    return ending


async def end_processes(processes: Collection[TaggedProcess], grace: float) -> Ending:
    """End some processes and all their descendants."""
    return await _end(lambda: _with_descendants(processes, set()), grace, lambda _: [], {})


async def _end(
    find: Callable[[], list[TaggedProcess]],
    grace: float,
    signal_newest: Callable[[int], list[TaggedProcess]],
    signalled: Signalled,
) -> Ending:
    started = time.monotonic()
    asked: set[ProcessIdentity] = set()
    refused: set[ProcessIdentity] = set()
    while True:
        alive = find()
        passed = time.monotonic() - started
        newest = signal_newest(SIGKILL if passed >= grace else 0)
        if not alive and not newest:
            break
        all_refused = bool(alive) and all(process.identity in refused for process in alive)
        if all_refused or passed > grace + SURVIVOR_PATIENCE:
            alive += newest
            break
        for process in alive:
            try:
                if passed >= grace:
                    process.identity.signal(SIGKILL)
                    signalled[process.identity] = (process, "SIGKILL")
                elif process.identity not in asked:
                    asked.add(process.identity)
                    process.identity.signal(SIGTERM)
                    process.identity.signal(SIGCONT)  # a stopped one would not handle SIGTERM
                    signalled[process.identity] = (process, "SIGTERM")
            except PermissionError:  # a program that became another user's
                refused.add(process.identity)
        await asyncio.sleep(RESCAN_INTERVAL)  # not our children: their end is no event for us
    survivors = {process.identity for process in alive}
    ended = [item for identity, item in signalled.items() if identity not in survivors]
    return Ending(ended, alive)


def _signal_newest(run_ids: Collection[str], signum: int) -> list[TaggedProcess]:
    """Signal the newest processes of some runs as fast as they appear; return those found.

    A process that forks and exits every few milliseconds is gone before a scan of all of ``/proc``
    has reached it, and its child is not in that scan: no scan would ever find it. But the living
    one is always among the newest.
    """
    until = time.monotonic() + RESCAN_INTERVAL
    found: list[TaggedProcess] = []
    clear = 0
    while clear < EMPTY_SCANS and (not found or time.monotonic() < until):
        signalled = _signal_newest_once(run_ids, signum)
        found += signalled
        clear = 0 if signalled else clear + 1
    return found


def _signal_newest_once(run_ids: Collection[str], signum: int) -> list[TaggedProcess]:
    newest = _newest_pid()
    signalled = []
    for pid in range(newest, max(0, newest - NEWEST_PROCESSES), -1):
        process = _read_process(pid)
        if process is None or process.kept or process.run_id not in run_ids:
            continue
        with contextlib.suppress(OSError):  # a thread, or a set-uid program
            if process.identity.signal(signum):
                signalled.append(process)
    return signalled


async def sweep(registry: Registry, grace: float) -> dict[str, EndReport]:
    """End the processes and remove the files of dead runs, and retire those runs.

    Live owners, and runs of other hosts and containers, are never touched.

    Returns
    -------
    dict
        Reports, by run id.
    """
    if not sees_itself():
        return {}  # it is unknown which owners are dead
    runs = registry.runs()
    _wake_guardians(runs)
    dead = [run for run in runs if run.is_dead and not run.is_contradictory]
    reports = {}
    # No process of an earlier boot can be alive.
    of_this_boot = [run.run_id for run in dead if run.scope.visibility is Visibility.HERE]
    ending = await end_tagged(of_this_boot, grace) if of_this_boot else Ending([], [])
    claimed = {path for run in runs if run not in dead for path in run.leftovers}
    for run in dead:
        report = reports[run.run_id] = _with_guardian_report(run.run_id, ending.report(run.run_id))
        if report.survivors:
            logger.warning("%s", SurvivorsError(run.run_id, report.survivors))
            continue
        remove_run_folders(run.run_id)
        for path in run.leftovers:
            if path not in claimed:
                remove_leftover(path)
        registry.retire(run.run_id, report)
        with contextlib.suppress(OSError):  # the guardian wrote none, or it cannot be removed
            guardian_report_file(run.run_id).unlink()
    for run in runs:
        if run.is_elsewhere and time.time() - run.started > ELSEWHERE_SECONDS:
            registry.retire(run.run_id)
    sweep_folders()
    return reports


async def sweep_together(registry: Registry, grace: float) -> None:
    """Sweep once for all concurrent callers."""
    await _sweeps.ask((registry, grace), None)


async def _sweep_once(whose: tuple[Registry, float], _: list[None]) -> None:
    await sweep(*whose)


_sweeps: Coalescer[tuple[Registry, float], None, None] = Coalescer(_sweep_once)


def past_runs(registry: Registry) -> list[EndedRun]:
    """Return the most recently ended runs, the latest first, also those not yet swept.

    Raises
    ------
    PermissionError
        The data directory cannot be used.
    """
    past = registry.ended_runs()
    for run in registry.runs():
        if run.is_dead and (words := guardian_report_file(run.run_id)).exists():
            past.append(
                EndedRun(
                    run_id=run.run_id,
                    previous=run.previous,
                    label=run.label,
                    started=run.started,
                    ended=words.stat().st_mtime,
                    report=_with_guardian_report(run.run_id, EndReport(verified=True)),
                )
            )
    return sorted(past, key=lambda run: run.ended, reverse=True)


def guardian_report_file(run_id: str) -> Path:
    """Return where a guardian writes its report when its owner is dead."""
    folder = data_dir() / "ended"
    make_directory(folder)
    return folder / run_id


def _with_guardian_report(run_id: str, report: EndReport) -> EndReport:
    try:
        said = EndReport.read(read_file(guardian_report_file(run_id)))
    except OSError:
        return report
    return EndReport(
        verified=report.verified,
        count=said.count + report.count,
        ended=said.ended + report.ended,
        survivors=report.survivors,
        kept=said.kept,
    )


def _wake_guardians(runs: Iterable[Run]) -> None:
    """Continue stopped guardians: they have not noticed that their owner died."""
    for run in runs:
        if (
            run.guardian is not None
            and run.scope.visibility is Visibility.HERE
            and not run.owner.is_alive()
        ):
            with contextlib.suppress(PermissionError):
                run.guardian.signal(SIGCONT)


def _processes_of(run_ids: Collection[str]) -> list[TaggedProcess]:
    """Return the living processes that carry one of some run ids, and all their descendants.

    A descendant that carries another run id is left out: that run has its own guardian.
    """
    tagged = tagged_processes()
    spared = {item.identity.pid for item in tagged if item.run_id not in run_ids or item.kept}
    return _with_descendants([item for item in tagged if item.run_id in run_ids], spared)


def _with_descendants(
    processes: Iterable[TaggedProcess], spared: Collection[int]
) -> list[TaggedProcess]:
    """Return the living ones of some processes and their descendants, except spared pids."""
    found: dict[ProcessIdentity, TaggedProcess] = {}
    children = all_children()  # read once: there may be thousands
    for process in processes:
        if process.identity.pid in spared or not process.identity.is_alive():
            continue
        found[process.identity] = process
        skipped = {*spared, os.getpid()}
        for status in living_descendants(process.identity.pid, children):
            identity = ProcessIdentity(status.pid, status.start_time)
            if status.pid in skipped or status.parent in skipped:
                skipped.add(status.pid)
            elif identity not in found:
                command = read_command(status.pid)
                found[identity] = TaggedProcess(
                    identity=identity, run_id=process.run_id, command=command
                )
    return list(found.values())


def _is_ours(pid: int) -> bool:
    """Whether this user started a process.

    A set-uid program of ours that another user started has our rights, but an environment that the
    other user chose: the tag of a run, for example.
    """
    user = read_user(pid)
    if user is not None:
        return user == os.getuid()
    try:
        os.kill(pid, 0)  # from root, who may signal every process, nothing is hidden
    except OSError:
        return False
    return True


def _read_tag(mark: int, environment: list[bytes], arguments: list[bytes]) -> str | None:
    for items, prefix in (
        (environment, f"{RUN_ID_VARIABLE}=".encode()),
        (arguments, RUN_ID_OPTION.encode()),
    ):
        for item in items:
            if item.startswith(prefix):
                run_id = item[len(prefix) :].decode("ascii", "replace")
                if is_run_id(run_id):
                    return run_id
    number = number_of(mark)
    return None if number is None else run_id_of_number(number)
