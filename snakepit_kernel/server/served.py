"""What the kernels of one Jupyter server have: their pools and background processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..pool.monitoring.published_pools import PublishedPool, live_pools
from ..pool.status import MAX_RUNNING, PoolStatus, WorkerStatus, failed
from ..printable import printable
from ..processes.identity import ProcessIdentity
from ..shells.of_session import processes
from ..shells.process import MAX_COMMAND, Process, ProcessRecord
from .kernels import Kernel, NotServed

SHOWN_ENDED_PROCESSES = 20
"""Processes of a kernel that have ended and are shown, the last ones."""

MAX_LOG_CHARACTERS = 1 << 18
"""Characters of the end of a log that are shown."""


FoundProcess = tuple[Process, ProcessRecord]
"""A process, and what was published of it when it was found."""


@dataclass(slots=True)
class Belongings:
    """What belongs to one kernel: its own, and that of what it has started.

    Parameters
    ----------
    kernel
        The kernel.
    """

    kernel: Kernel
    pools: list[PublishedPool] = field(default_factory=list)
    processes: list[FoundProcess] = field(default_factory=list)
    _pids: set[int] = field(default_factory=set)
    _runs: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._pids = set() if self.kernel.pid is None else {self.kernel.pid}
        self._runs = {self.kernel.run_id} if self.kernel.run_id else set()

    def claim(self, pools: list[PublishedPool], found: list[FoundProcess]) -> None:
        """Move what belongs to the kernel out of two lists.

        A pool that a worker or a script of the notebook has opened belongs to it, too: what is
        claimed may claim more.
        """
        while True:
            own_pools = [pool for pool in pools if self._owns_pool(pool)]
            own_processes = [each for each in found if self._owns_process(each[1])]
            if not own_pools and not own_processes:
                return
            for pool in own_pools:
                pools.remove(pool)
                self.pools.append(pool)
                self._runs.update(worker.run_id for worker in pool.status.workers)
                if pool.is_here:
                    self._pids.add(pool.status.owner_pid)
            for each in own_processes:
                found.remove(each)
                self.processes.append(each)
                self._runs.add(each[1].run_id)

    def _owns_pool(self, pool: PublishedPool) -> bool:
        by_pid = pool.status.owner_pid in self._pids and pool.is_here
        return by_pid or pool.run_id in self._runs

    def _owns_process(self, record: ProcessRecord) -> bool:
        return ProcessIdentity.parse(record.owner).pid in self._pids


def belongings(kernels: Iterable[Kernel]) -> tuple[list[Belongings], list[str]]:
    """Return what each kernel has, and messages about files that cannot be read.

    Raises
    ------
    OSError
        The runtime directory cannot be used.
    """
    owners = [Belongings(kernel) for kernel in kernels]
    if not owners:
        return [], []
    pools, problems = live_pools()
    found = [(process, process.record) for process in processes()]
    for owner in owners:
        owner.claim(pools, found)
    return owners, problems


def pool_id(pool: PublishedPool) -> str:
    """Return the name of a pool in addresses: unique among the pools of a user."""
    return f"{pool.run_id}/{pool.folder.name}"


def find_pool(kernels: Iterable[Kernel], wanted: str) -> PublishedPool:
    """Return a pool of one of the kernels.

    Raises
    ------
    NotServed
        No kernel has it.
    """
    for owner in belongings(kernels)[0]:
        for pool in owner.pools:
            if pool_id(pool) == wanted:
                return pool
    msg = "the pool has ended, or belongs to no kernel of this server"
    raise NotServed(msg)


def find_process(kernels: Iterable[Kernel], wanted: str) -> Process:
    """Return a background process of one of the kernels.

    Raises
    ------
    NotServed
        No kernel has it.
    """
    for owner in belongings(kernels)[0]:
        for process, _ in owner.processes:
            if process.id == wanted:
                return process
    msg = f"process {wanted} is gone, or belongs to no kernel of this server"
    raise NotServed(msg)


# -- as JSON ---------------------------------------------------------------------------------------


def state_of(kernels: Sequence[Kernel]) -> dict[str, Any]:
    """Return what the panel shows, as plain data."""
    owners, problems = belongings(kernels)
    shown = [_kernel(owner) for owner in owners if owner.pools or owner.processes]
    return {"kernels": shown, "problems": [printable(problem) for problem in problems]}


def log_of(kernels: Iterable[Kernel], wanted: str) -> dict[str, Any]:
    """Return the end of a process's log, as plain data.

    Raises
    ------
    NotServed
        No kernel has the process.
    """
    process = find_process(kernels, wanted)
    text = process.logs().text
    return {
        "name": printable(process.name),
        "status": process.status,
        "text": printable(text[-MAX_LOG_CHARACTERS:], lines=True),
        "is_cut": len(text) > MAX_LOG_CHARACTERS,
    }


def _kernel(owner: Belongings) -> dict[str, Any]:
    kernel = owner.kernel
    statuses = [pool.refreshed() for pool in owner.pools]
    jobs = {(pool.owner_pid, job.number): job for pool in statuses for job in pool.jobs}
    pool_of_owner = {pool.status.owner_pid: pool_id(pool) for pool in owner.pools}
    return {
        "id": kernel.id,
        "name": printable(kernel.name),
        "path": kernel.path,
        "state": kernel.state,
        "pools": [
            _pool(pool_id(pool), status) for pool, status in zip(owner.pools, statuses, strict=True)
        ],
        "processes": [_process(record) for record in _shown(owner.processes)],
        "jobs": [
            {
                "number": job.number,
                "title": printable(job.title),
                "started": job.started,
                "pool": pool_of_owner[pid],  # any pool of its process passes a command on
            }
            for (pid, _), job in sorted(jobs.items())
        ],
    }


def _shown(found: Iterable[FoundProcess]) -> list[ProcessRecord]:
    running: list[ProcessRecord] = []
    ended: list[ProcessRecord] = []
    for _, record in found:
        (running if record.state == "running" else ended).append(record)
    return [*running, *ended[-SHOWN_ENDED_PROCESSES:]]


def _pool(identifier: str, status: PoolStatus) -> dict[str, Any]:
    stats = status.stats
    return {
        "id": identifier,
        "name": printable(status.name),
        "adapter": printable(status.adapter),
        "queued": stats.queued,
        "running": stats.running,
        "calls": stats.submitted,
        "failed": failed(stats),
        "sessions": [printable(session) for session in status.sessions],
        "shells": status.shells,
        "problem": printable(status.problem or "", lines=True),
        "workers": [
            _worker(worker, dict(zip(status.headings, row, strict=True)))
            for worker, row in zip(status.workers, status.rows(), strict=True)
        ],
    }


def _worker(worker: WorkerStatus, cells: dict[str, str]) -> dict[str, Any]:
    """Return a worker: what identifies it, and the texts of its row in the status."""
    return {
        "name": worker.name,
        "pid": worker.pid,
        "state": worker.state,
        "tainted": worker.tainted and printable(worker.tainted),
        "running": printable(worker.running or "", limit=MAX_RUNNING),
        "cells": cells,
    }


def _process(record: ProcessRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": printable(record.name),
        "session": printable(record.session),
        "command": printable(" ".join(record.command.split()), limit=MAX_COMMAND),
        "pid": record.pid,
        "status": record.state,
        "returncode": record.returncode,
        "started": record.started,
        "ended": record.ended,
    }
