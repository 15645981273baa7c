"""Finding processes by the tag of their run, and ending those of dead runs.

This is the net below the guardian: it is needed only when a guardian was killed itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import logging
import os
import resource
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import SurvivorsError
from ..files import make_directory, read_file
from ..ids import RUN_ID_OPTION, RUN_ID_VARIABLE, is_run_id, run_id_of_number
from ..paths import data_dir
from .concurrency import Coalescer
from .end_report import EndedProcess, EndReport
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

logger = logging.getLogger(__name__)

SIGTERM = 15
SIGCONT = 18
RESCAN_INTERVAL = 0.02
SURVIVOR_PATIENCE = 5.0

UNREADABLE = "(hidden by /proc: nobody can tell whether it belongs to a run)"

NEWBORNS = 64
"""How many of the machine's newest processes are looked at apart from a scan of all."""

CLEAR_LOOKS = 10
"""Looks at them without a find: between two looks one may have ended that has just forked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggedProcess:
    """A living process that carries the tag of a run.

    Attributes
    ----------
    kept
        It is marked to outlive its run.
    contained
        It is in another PID namespace than we are: in a container.
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
    """What is left of runs for which nobody answers any more, and what is in order.

    Attributes
    ----------
    dead
        Runs that are written down, whose owner and guardian have died, with their living processes.
    unknown
        Processes of runs that are not written down, by run: nobody knows whether their owners live.
    kept
        Processes of ended runs that are marked to be kept.
    elsewhere
        Runs of other hosts and containers.
    live
        Runs whose owner or guardian lives.
    unreadable
        Pids of this user's processes that `/proc` hides, and that may be of any run.
    """

    dead: list[tuple[Run, list[TaggedProcess]]]
    unknown: dict[str, list[TaggedProcess]]
    kept: list[TaggedProcess]
    elsewhere: list[Run]
    live: list[Run]
    unreadable: list[int] = field(default_factory=list)


# -- looking ---------------------------------------------------------------------------------------


def tagged_processes() -> list[TaggedProcess]:
    """Return every living process of this user that carries a run id, this process excepted."""
    if not sees_itself():
        return []  # the numbers there are not ours: nobody can be told from another
    pids = [status.pid for status in all_statuses() if not status.is_dead]
    pids += hidden_processes()
    return [process for pid in pids if (process := _read_process(pid)) is not None]


def hidden_processes() -> list[int]:
    """Return the pids of this user's processes that `/proc` hides.

    All pids that there may be are tried, which takes up to 2 s where four million processes were
    started since the machine was; on most machines nothing is hidden.
    """
    if not hides_processes():
        return []
    # In C: no exception for each that is missing. The lock of the interpreter is held: it would be
    # handed on as often.
    group_of = ctypes.PyDLL(None).getpgid
    pids = range(1, _highest_pid() + 1)
    found = [pid for pid, group in zip(pids, map(group_of, pids), strict=True) if group >= 0]
    return [pid for pid in found if is_hidden(pid) and _is_ours(pid) and not _is_thread(pid)]


def _highest_pid() -> int:
    """Return the highest pid that there may be: the last one, until they begin anew."""
    most = int(Path("/proc/sys/kernel/pid_max").read_text("ascii"))
    statistics = Path("/proc/stat").read_text("ascii")
    started = int(statistics.partition("\nprocesses ")[2].split(None, 1)[0])
    return _newest_pid() if started < most else most


def _newest_pid() -> int:
    return int(Path("/proc/loadavg").read_text("ascii").split()[4])


def unreadable_processes() -> list[int]:
    """Return the pids of this user's processes of which nobody can tell whether they have a tag.

    That are the set-uid programs which `/proc` hides.
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
    """Whether a number is that of a thread, which stands for its process in most calls."""
    try:
        os.close(open_pidfd(pid))
    except OSError as error:
        return error.errno in {errno.EINVAL, errno.ENOENT}
    return False


def _read_process(pid: int) -> TaggedProcess | None:
    """Read a process that carries a run id; None when there is none, or it is not ours to end.

    It is not if it is this very process, or another user's.
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
    """Read a process that `/proc` hides, as far as its mark tells of it."""
    if not is_hidden(pid):
        return None
    mark = read_mark(pid)
    number = number_of(mark)
    if number is None or _is_thread(pid):
        return None
    return TaggedProcess(
        identity=MarkedProcess(pid, mark),
        run_id=run_id_of_number(number),
        command="(hidden by /proc)",
        kept=says_kept(mark, []),
    )


def survey(registry: Registry) -> Survey:
    """Look at all runs and tagged processes; touch nothing.

    Raises
    ------
    PermissionError
        The data directory cannot be used.
    """
    tagged = tagged_processes()  # before the registry: a run is written down before it is started
    runs = registry.runs()
    dead = [run for run in runs if run.is_dead and not run.contradicts_itself]
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
        if isinstance(process.identity, MarkedProcess):  # what is above it is hidden as well
            above = set(guardians.values())
        in_order = run.run_id not in over if run is not None else process.run_id in above
        if in_order or not process.identity.is_alive():
            continue
        if process.kept:
            kept.append(process)
        elif run is None and not process.contained:  # a container's own owners answer for those
            unknown.setdefault(process.run_id, []).append(process)
    return Survey(
        dead=[(run, _wanted(of_run.get(run.run_id, []))) for run in dead],
        unknown=unknown,
        kept=kept,
        elsewhere=[run for run in runs if run.is_elsewhere],
        live=[run for run in runs if run.run_id not in over and not run.is_elsewhere],
        unreadable=unreadable_processes(),
    )


def _wanted(processes: Iterable[TaggedProcess]) -> list[TaggedProcess]:
    return [item for item in processes if not item.kept and item.identity.is_alive()]


def _is_guardian(process: TaggedProcess) -> bool:
    words = [os.fsdecode(word) for word in read_arguments(process.identity.pid)]
    is_told_its_owner = any(word.startswith("--owner=") for word in words)
    return is_told_its_owner and RUN_ID_OPTION + process.run_id in words


def _guardians_above(pid: int, parents: dict[int, int], guardians: dict[int, str]) -> set[str]:
    """Return the runs whose guardians stand above a process, or are it."""
    found = set()
    while pid in parents:
        if pid in guardians:
            found.add(guardians[pid])
        pid = parents[pid]
    return found


# -- ending ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Ending:
    """What became of some processes that were to be ended.

    Attributes
    ----------
    ended
        What is verified gone, with the name of the signal that did it.
    survivors
        What is still alive: it sleeps in the kernel of the machine, or is another user's.
    unreadable
        Pids of processes that `/proc` hides, and that may be of any run.
    """

    ended: list[tuple[TaggedProcess, str]]
    survivors: list[TaggedProcess]
    unreadable: list[int] = field(default_factory=list)

    def report(self, run_id: str | None = None) -> EndReport:
        """Return what it took for one run, or for all."""
        ended = [
            EndedProcess(pid=item.identity.pid, command=item.command, signal=name)
            for item, name in self.ended
            if run_id in {None, item.run_id}
        ]
        survivors = [str(item) for item in self.survivors if run_id in {None, item.run_id}]
        survivors += [f"{pid} ? {UNREADABLE}" for pid in self.unreadable]
        return EndReport(verified=not survivors, count=len(ended), ended=ended, survivors=survivors)


Signalled = dict[ProcessIdentity, tuple[TaggedProcess, str]]
"""What was to be ended, with the name of the last signal that it got."""


async def end_tagged(
    run_ids: Collection[str], grace: float, signalled: Signalled | None = None
) -> Ending:
    """End every process that carries the id of one of some runs, and all below them, tagged or not.

    What is marked to be kept is left alone.
    """
    ending = await _end(
        lambda: _processes_of(run_ids),
        grace,
        lambda signum: _chase(run_ids, signum),
        {} if signalled is None else signalled,
    )
    ending.unreadable = unreadable_processes()
    return ending


async def end_run_tagged(
    registry: Registry, run_id: str, grace: float, signalled: Signalled | None = None
) -> Ending:
    """End every process of a run whose guardian is of no use, and the runs that it had started.

    These have guardians, which end them because their owners died; but that may take its time.

    Parameters
    ----------
    registry
        Where the runs are written down.
    run_id
        The run.
    grace
        Seconds between SIGTERM and SIGKILL.
    signalled
        What was signalled by others who end this run, and told of by each of them.
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
        and not run.owner.is_alive()  # one that is kept answers for its runs
    }:
        over |= nested
        more = await end_tagged(nested, grace, signalled)
        ending.ended = more.ended
        ending.survivors += more.survivors
        ending.unreadable = more.unreadable
    return ending


async def end_processes(processes: Collection[TaggedProcess], grace: float) -> Ending:
    """End certain processes and all below them."""
    return await _end(lambda: _with_descendants(processes, set()), grace, lambda _: [], {})


async def _end(
    find: Callable[[], list[TaggedProcess]],
    grace: float,
    chase: Callable[[int], list[TaggedProcess]],
    signalled: Signalled,
) -> Ending:
    started = time.monotonic()
    asked: set[ProcessIdentity] = set()
    refused: set[ProcessIdentity] = set()
    while True:
        alive = find()
        passed = time.monotonic() - started
        fleeing = chase(SIGKILL if passed >= grace else 0)
        if not alive and not fleeing:
            break
        hopeless = bool(alive) and all(process.identity in refused for process in alive)
        if hopeless or passed > grace + SURVIVOR_PATIENCE:
            alive += fleeing
            break
        for process in alive:
            try:
                if passed >= grace:
                    process.identity.signal(SIGKILL)
                    signalled[process.identity] = (process, "SIGKILL")
                elif process.identity not in asked:
                    asked.add(process.identity)
                    process.identity.signal(SIGTERM)
                    process.identity.signal(SIGCONT)  # or a stopped one would hear nothing
                    signalled[process.identity] = (process, "SIGTERM")
            except PermissionError:  # a program that became another user's
                refused.add(process.identity)
        await asyncio.sleep(RESCAN_INTERVAL)  # not our children: their end is no event for us
    survivors = {process.identity for process in alive}
    ended = [item for identity, item in signalled.items() if identity not in survivors]
    return Ending(ended, alive)


def _chase(run_ids: Collection[str], signum: int) -> list[TaggedProcess]:
    """Signal the newest processes of some runs as fast as they come; return what was found.

    A process that forks and exits every few milliseconds is gone before a scan of all of ``/proc``
    has come to it, and its child is not in that scan: none would ever see it. But the one that
    lives is always among the newest.
    """
    until = time.monotonic() + RESCAN_INTERVAL
    found: list[TaggedProcess] = []
    clear = 0
    while clear < CLEAR_LOOKS and (not found or time.monotonic() < until):
        struck = _strike_newborns(run_ids, signum)
        found += struck
        clear = 0 if struck else clear + 1
    return found


def _strike_newborns(run_ids: Collection[str], signum: int) -> list[TaggedProcess]:
    newest = _newest_pid()
    struck = []
    for pid in range(newest, max(0, newest - NEWBORNS), -1):
        process = _read_process(pid)
        if process is None or process.kept or process.run_id not in run_ids:
            continue
        with contextlib.suppress(OSError):  # a thread, or a set-uid program
            if process.identity.signal(signum):
                struck.append(process)
    return struck


async def sweep(registry: Registry, grace: float) -> dict[str, EndReport]:
    """End what dead runs left behind, processes and files, and forget those runs.

    Live owners, and runs of other hosts and containers, are never touched.

    Returns
    -------
    dict
        What was ended, by run id.
    """
    if not sees_itself():
        return {}  # there is no telling who is dead
    runs = registry.runs()
    _wake_guardians(runs)
    dead = [run for run in runs if run.is_dead and not run.contradicts_itself]
    reports = {}
    # Nothing can be alive of an earlier boot.
    of_this_boot = [run.run_id for run in dead if run.place.visibility is Visibility.HERE]
    ending = await end_tagged(of_this_boot, grace) if of_this_boot else Ending([], [])
    claimed = {path for run in runs if run not in dead for path in run.leftovers}
    for run in dead:
        report = reports[run.run_id] = _with_last_words(run.run_id, ending.report(run.run_id))
        if report.survivors:
            logger.warning("%s", SurvivorsError(run.run_id, report.survivors))
            continue
        remove_run_folders(run.run_id)
        for path in run.leftovers:
            if path not in claimed:
                remove_leftover(path)
        registry.retire(run.run_id, report)
        with contextlib.suppress(OSError):  # none were said, or they cannot be kept
            last_words(run.run_id).unlink()
    for run in runs:
        if run.is_elsewhere and time.time() - run.started > ELSEWHERE_SECONDS:
            registry.retire(run.run_id)
    sweep_folders()
    return reports


async def sweep_together(registry: Registry, grace: float) -> None:
    """Sweep once for all who ask for it at the same moment."""
    await _sweeps.ask((registry, grace), None)


async def _sweep_once(whose: tuple[Registry, float], _: list[None]) -> None:
    await sweep(*whose)


_sweeps: Coalescer[tuple[Registry, float], None, None] = Coalescer(_sweep_once)


def past_runs(registry: Registry) -> list[EndedRun]:
    """Return the runs that ended last, the latest first, also if no sweep has forgotten them yet.

    Raises
    ------
    PermissionError
        The data directory cannot be used.
    """
    past = registry.ended_runs()
    for run in registry.runs():
        if run.is_dead and (words := last_words(run.run_id)).exists():
            past.append(
                EndedRun(
                    run_id=run.run_id,
                    previous=run.previous,
                    label=run.label,
                    started=run.started,
                    ended=words.stat().st_mtime,
                    report=_with_last_words(run.run_id, EndReport(verified=True)),
                )
            )
    return sorted(past, key=lambda run: run.ended, reverse=True)


def last_words(run_id: str) -> Path:
    """Return where a guardian writes what it had to end when nobody is left to be told."""
    folder = data_dir() / "ended"
    make_directory(folder)
    return folder / run_id


def _with_last_words(run_id: str, report: EndReport) -> EndReport:
    try:
        said = EndReport.read(read_file(last_words(run_id)))
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
    """Continue guardians that somebody stopped: they have not seen that their owner died."""
    for run in runs:
        if (
            run.guardian is not None
            and run.place.visibility is Visibility.HERE
            and not run.owner.is_alive()
        ):
            with contextlib.suppress(PermissionError):
                run.guardian.signal(SIGCONT)


def _processes_of(run_ids: Collection[str]) -> list[TaggedProcess]:
    """Return the living processes that carry one of some run ids, and all below them.

    What is below and carries another run id is left alone: that run has a guardian of its own.
    """
    tagged = tagged_processes()
    spared = {item.identity.pid for item in tagged if item.run_id not in run_ids or item.kept}
    return _with_descendants([item for item in tagged if item.run_id in run_ids], spared)


def _with_descendants(
    processes: Iterable[TaggedProcess], spared: Collection[int]
) -> list[TaggedProcess]:
    """Return those of some processes that live, and what is below them, but for some pids."""
    found: dict[ProcessIdentity, TaggedProcess] = {}
    children = all_children()  # once: there may be thousands of them
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

    A set-uid program that another user started has our rights, if it is ours, but the surroundings
    that its user chose: the tag of a run, for example.
    """
    user = read_user(pid)
    if user is not None:
        return user == os.getuid()
    try:
        os.kill(pid, 0)  # nothing is hidden from those who may signal everybody
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
