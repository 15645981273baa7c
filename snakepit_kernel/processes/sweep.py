"""Finding processes by the tag of their run, and ending those of dead runs.

This is the net below the guardian: it is needed only when a guardian was killed itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from ..errors import SurvivorsError
from ..ids import RUN_ID_OPTION, RUN_ID_VARIABLE, is_run_id, run_id_of_mark
from .identity import (
    SIGKILL,
    ProcessIdentity,
    all_statuses,
    boot_id,
    living_descendants,
    read_command,
    read_status,
)
from .registry import Registry, Run

logger = logging.getLogger(__name__)

SIGTERM = 15
SIGCONT = 18
RESCAN_INTERVAL = 0.02
SURVIVOR_PATIENCE = 5.0

NEWBORNS = 64
"""How many of the machine's newest processes are looked at apart from a scan of all."""

CLEAR_LOOKS = 10
"""Looks at them without a find: between two looks one may have ended that has just forked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggedProcess:
    """A living process that carries the tag of a run."""

    identity: ProcessIdentity
    run_id: str
    command: str


def tagged_processes() -> list[TaggedProcess]:
    """Return every living process of this user that carries a run id, this process excepted."""
    found = []
    for status in all_statuses():
        if status.is_dead or status.pid == os.getpid():
            continue
        run_id = _read_tag(status.pid)
        if run_id is not None:
            identity = ProcessIdentity(status.pid, status.start_time)
            found.append(
                TaggedProcess(identity=identity, run_id=run_id, command=read_command(status.pid))
            )
    return found


async def end_tagged(run_id: str, grace: float) -> list[TaggedProcess]:
    """End every process that carries one run id; return them when they are verified gone.

    Raises
    ------
    SurvivorsError
        Some are still alive some seconds after SIGKILL.
    """
    started = time.monotonic()
    seen: dict[ProcessIdentity, TaggedProcess] = {}
    while True:
        alive = _processes_of(run_id)
        passed = time.monotonic() - started
        newborn = _chase(run_id, SIGKILL if passed >= grace else 0)
        if not alive and not newborn:
            return list(seen.values())
        if passed > grace + SURVIVOR_PATIENCE:
            raise SurvivorsError(run_id, [f"{p.identity.pid} {p.command}" for p in alive])
        for process in alive:
            with contextlib.suppress(PermissionError):  # a set-uid program: it is named if it stays
                if passed >= grace:
                    process.identity.signal(SIGKILL)
                elif process.identity not in seen:
                    process.identity.signal(SIGTERM)
                    process.identity.signal(SIGCONT)
            seen[process.identity] = process
        await asyncio.sleep(RESCAN_INTERVAL)  # not our children: their end is no event for us


async def sweep_dead_runs(registry: Registry, grace: float) -> list[TaggedProcess]:
    """End what dead runs left behind, and forget those runs. Live owners are never touched."""
    ended: list[TaggedProcess] = []
    _wake_guardians(registry)
    for run in dead_runs(registry):
        try:
            ended += await end_tagged(run.run_id, grace)
        except SurvivorsError as error:
            logger.warning("%s", error)
        else:
            registry.retire(run.run_id)
    return ended


def dead_runs(registry: Registry) -> list[Run]:
    """Return the runs whose owner and guardian have both died."""
    return [run for run in registry.runs() if run.is_dead]


def _wake_guardians(registry: Registry) -> None:
    """Continue guardians that somebody stopped: they have not seen that their owner died."""
    for run in registry.runs():
        if run.guardian is not None and run.boot_id == boot_id() and not run.owner.is_alive():
            with contextlib.suppress(PermissionError):
                run.guardian.signal(SIGCONT)


def _chase(run_id: str, signum: int) -> bool:
    """Signal the newest processes of a run as fast as they come; say whether there was one.

    A process that forks and exits every few milliseconds is gone before a scan of all of ``/proc``
    has come to it, and its child is not in that scan: none would ever see it. But the one that
    lives is always among the newest.
    """
    until = time.monotonic() + RESCAN_INTERVAL
    found = False
    clear = 0
    while clear < CLEAR_LOOKS and (not found or time.monotonic() < until):
        if _strike_newborns(run_id, signum):
            found, clear = True, 0
        else:
            clear += 1
    return found


def _strike_newborns(run_id: str, signum: int) -> bool:
    newest = int(Path("/proc/loadavg").read_text("ascii").split()[4])
    struck = False
    for pid in range(newest, max(0, newest - NEWBORNS), -1):
        status = read_status(pid)
        if status is None or status.is_dead or pid == os.getpid() or _read_tag(pid) != run_id:
            continue
        with contextlib.suppress(OSError):  # a thread, or a set-uid program
            struck |= ProcessIdentity(pid, status.start_time).signal(signum)
    return struck


def _processes_of(run_id: str) -> list[TaggedProcess]:
    """Return the living processes that carry a run id, and all below them, tagged or not.

    What is below and carries another run id is left alone: that run has a guardian of its own.
    """
    tagged = tagged_processes()
    others = {process.identity.pid for process in tagged if process.run_id != run_id}
    found = {process.identity: process for process in tagged if process.run_id == run_id}
    for root in list(found):
        for status in living_descendants(root.pid):
            identity = ProcessIdentity(status.pid, status.start_time)
            if identity not in found and status.pid not in {*others, os.getpid()}:
                command = read_command(status.pid)
                found[identity] = TaggedProcess(identity=identity, run_id=run_id, command=command)
    return list(found.values())


def _read_tag(pid: int) -> str | None:
    for name, prefix in (("environ", f"{RUN_ID_VARIABLE}="), ("cmdline", RUN_ID_OPTION)):
        try:
            content = Path(f"/proc/{pid}/{name}").read_bytes()
        except OSError:
            continue  # another user's, or gone
        start = prefix.encode()
        for item in content.split(b"\0"):
            if item.startswith(start):
                run_id = item[len(start) :].decode("ascii", "replace")
                if is_run_id(run_id):
                    return run_id
    return run_id_of_mark(_read_resident_set_limit(pid))


def _read_resident_set_limit(pid: int) -> int:
    try:
        content = Path(f"/proc/{pid}/limits").read_bytes()
    except OSError:
        return 0
    soft = content.partition(b"Max resident set")[2].split(None, 1)[:1]
    return int(soft[0]) if soft and soft[0].isdigit() else 0
